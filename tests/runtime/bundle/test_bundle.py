"""Bundles are checked before anything in them is used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foveate_runtime.bundle.bundle import MAX_MANIFEST_BYTES, Bundle, BundleError

Write = Callable[..., Path]


def change_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_opens_a_bundle(write_bundle: Write) -> None:
    bundle = Bundle.open(write_bundle())
    assert bundle.labels == ("red", "green", "blue")
    assert bundle.file("fp32").name == "model.onnx"
    with pytest.raises(KeyError):
        bundle.file("int8")


def test_a_map_says_how_the_network_lays_it_out(write_bundle: Write) -> None:
    path = write_bundle()
    manifest = Bundle.open(path).manifest
    assert {entry.layout for entry in (*manifest.cams, *manifest.features)} == {"nchw"}
    change_manifest(path, lambda m: m["features"][0].update(layout="tokens(14, 14, 1)"))
    assert Bundle.open(path).manifest.features[0].layout == "tokens(14, 14, 1)"
    change_manifest(path, lambda m: m["cams"][0].update(layout="rows first"))
    with pytest.raises(BundleError, match=r"^manifest\.json: cams\.0\.layout: "):
        Bundle.open(path)


def test_a_bundle_may_be_reached_through_a_link(write_bundle: Write, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write_bundle())
    assert Bundle.open(tmp_path / "link").manifest.name == "colours"


def test_a_changed_byte_is_found(write_bundle: Write) -> None:
    path = write_bundle()
    graph = bytearray((path / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (path / "model.onnx").write_bytes(graph)
    with pytest.raises(BundleError, match=r"^model\.onnx: its SHA-256"):
        Bundle.open(path)


def test_a_truncated_file_is_found(write_bundle: Write) -> None:
    path = write_bundle()
    graph = (path / "model.onnx").read_bytes()
    (path / "model.onnx").write_bytes(graph[:-1])
    with pytest.raises(BundleError, match=rf"^model\.onnx: {len(graph) - 1} bytes"):
        Bundle.open(path)


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "labels.txt"])
def test_a_missing_file_is_named(write_bundle: Write, name: str) -> None:
    path = write_bundle()
    (path / name).unlink()
    with pytest.raises(BundleError, match=f"^{name}: "):
        Bundle.open(path)


def test_a_link_out_of_the_bundle_is_refused(write_bundle: Write, tmp_path: Path) -> None:
    path = write_bundle()
    outside = tmp_path / "outside.onnx"
    (path / "model.onnx").rename(outside)
    (path / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match=r"^model\.onnx: a link that leaves the bundle"):
        Bundle.open(path)


def test_a_path_out_of_the_bundle_is_refused(write_bundle: Write) -> None:
    path = write_bundle()
    change_manifest(path, lambda m: m["files"].update({"../x": m["files"]["labels.txt"]}))
    with pytest.raises(BundleError, match=r"^manifest\.json: .*leaves the bundle"):
        Bundle.open(path)


def test_an_unknown_key_is_refused_by_its_name(write_bundle: Write) -> None:
    path = write_bundle()
    change_manifest(path, lambda m: m["input"].update(colour_space="CMYK"))
    with pytest.raises(BundleError, match=r"^manifest\.json: input\.colour_space: "):
        Bundle.open(path)


def test_a_mean_on_the_scale_to_255_is_refused(write_bundle: Write) -> None:
    path = write_bundle()
    change_manifest(path, lambda m: m["input"].update(mean=[123.675, 116.28, 103.53]))
    with pytest.raises(BundleError, match=r"manifest\.json: .*from 0 to 1 it is \[0.485, 0.456"):
        Bundle.open(path)


def test_a_manifest_that_is_no_json_is_refused(write_bundle: Write) -> None:
    path = write_bundle()
    (path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match=r"^manifest\.json: the document: Invalid JSON"):
        Bundle.open(path)


def test_a_manifest_above_the_limit_is_refused(write_bundle: Write) -> None:
    path = write_bundle()
    with (path / "manifest.json").open("a", encoding="utf-8") as file:
        file.write(" " * MAX_MANIFEST_BYTES)
    with pytest.raises(BundleError, match=f"limit of {MAX_MANIFEST_BYTES} bytes"):
        Bundle.open(path)


def test_labels_and_classes_must_agree(write_bundle: Write) -> None:
    path = write_bundle()
    change_manifest(path, lambda m: m.update(classes=4))
    with pytest.raises(BundleError, match=r"^labels\.txt: 3 labels for 4 classes"):
        Bundle.open(path)


def test_no_message_tells_where_the_bundle_lies(write_bundle: Write) -> None:
    path = write_bundle()
    (path / "labels.txt").unlink()
    with pytest.raises(BundleError) as raised:
        Bundle.open(path)
    assert str(path.parent) not in str(raised.value)
