"""Bundles that were made to harm: each is refused in one line, and in little time and memory."""

import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveate_runtime.bundle.bundle import (
    MAX_LABEL_CHARACTERS,
    MAX_LABELS_BYTES,
    MAX_MANIFEST_BYTES,
    Bundle,
    BundleError,
)
from foveate_runtime.bundle.onnx_file import MAX_DEPTH, MAX_FIELDS

from ...colours import colour_graph, relist
from .test_bundle import change_manifest

Write = Callable[..., Path]
Attack = Callable[[Path], None]


def manifest(change: Callable[[dict], object]) -> Attack:
    return lambda path: change_manifest(path, lambda m: [change(m), None][1])


def raw_manifest(text: str) -> Attack:
    return lambda path: (path / "manifest.json").write_text(text, encoding="utf-8") and None


def labels(text: str, classes: int = 3) -> Attack:
    def attack(path: Path) -> None:
        (path / "labels.txt").write_text(text, encoding="utf-8")
        relist(path, "labels.txt")
        change_manifest(path, lambda m: m.update(classes=classes))

    return attack


def graph(change: Callable[[onnx.ModelProto], object]) -> Attack:
    def attack(path: Path) -> None:
        model = colour_graph()
        change(model)
        (path / "model.onnx").write_bytes(model.SerializeToString())
        relist(path, "model.onnx")

    return attack


def raw_graph(data: bytes) -> Attack:
    def attack(path: Path) -> None:
        (path / "model.onnx").write_bytes(data)
        relist(path, "model.onnx")

    return attack


def instead(name: str, make: Callable[[Path], object]) -> Attack:
    """Put something else in the place of a file."""

    def attack(path: Path) -> None:
        (path / name).unlink()
        make(path / name)

    return attack


def external(tensor: TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def external_weight(model: onnx.ModelProto) -> None:
    external(model.graph.initializer[0], "../../../etc/passwd")


def only_named_external(model: onnx.ModelProto) -> None:
    """Without the place that says it, which some readers believe all the same."""
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def external_constant_in_a_branch(model: onnx.ModelProto) -> None:
    hidden = numpy_helper.from_array(np.zeros(4, np.float32), "hidden")
    external(hidden, "/proc/self/environ")
    constant = helper.make_node("Constant", [], ["c"], value=hidden)
    out = helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])
    branch = helper.make_graph([constant], "branch", [], [out])
    model.graph.node.append(
        helper.make_node("If", ["condition"], ["unused"], then_branch=branch, else_branch=branch)
    )


def external_sparse(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.name = "sparse"
    external(sparse.values, "/etc/passwd")


def external_in_a_function(model: onnx.ModelProto) -> None:
    hidden = numpy_helper.from_array(np.zeros(4, np.float32), "hidden")
    external(hidden, "/etc/passwd")
    model.functions.append(
        helper.make_function(
            "local",
            "Hidden",
            [],
            ["c"],
            [helper.make_node("Constant", [], ["c"], value=hidden)],
            [helper.make_opsetid("", 18)],
        )
    )


def engine_of_its_own(model: onnx.ModelProto) -> None:
    place = {"embed_mode": 0, "ep_cache_context": "../x.engine"}
    model.graph.node.append(helper.make_node("EPContext", [], [], domain="com.microsoft", **place))


def deep(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "innermost", [], [])
    for _ in range(MAX_DEPTH + 1):
        node = helper.make_node("If", ["c"], ["x"], then_branch=inner, else_branch=inner)
        # One branch is enough, and two would double at each level.
        del node.attribute[1]
        inner = helper.make_graph([node], "nested", [], [])
    model.graph.node.extend(inner.node)


ATTACKS: dict[str, tuple[Attack, str]] = {
    "path with ..": (
        manifest(lambda m: m["files"].update({"../secret": m["files"]["labels.txt"]})),
        "manifest.json: .*leaves the bundle",
    ),
    "absolute path": (
        manifest(lambda m: m["files"].update({"/etc/passwd": m["files"]["labels.txt"]})),
        "manifest.json: .*leaves the bundle",
    ),
    "path with a null": (
        manifest(lambda m: m["files"].update({"a\0b": m["files"]["labels.txt"]})),
        "manifest.json: .*characters that cannot be printed",
    ),
    "path that is too long": (
        manifest(lambda m: m["files"].update({"a" * 5000: m["files"]["labels.txt"]})),
        "a+: cannot be read .File name too long.",
    ),
    "link out": (
        instead("labels.txt", lambda path: path.symlink_to("/etc/passwd")),
        "labels.txt: a link that leaves the bundle",
    ),
    "link to itself": (
        instead("labels.txt", lambda path: path.symlink_to("labels.txt")),
        "labels.txt: (a link to itself|cannot be read)",
    ),
    "manifest linked to itself": (
        instead("manifest.json", lambda path: path.symlink_to("manifest.json")),
        "manifest.json: cannot be read",
    ),
    "pipe for labels": (instead("labels.txt", os.mkfifo), "labels.txt: no such file"),
    "pipe for the graph": (instead("model.onnx", os.mkfifo), "model.onnx: no such file"),
    "pipe for the manifest": (instead("manifest.json", os.mkfifo), "manifest.json: not a plain"),
    "device for the graph": (
        instead("model.onnx", lambda path: path.symlink_to("/dev/zero")),
        "model.onnx: a link that leaves the bundle",
    ),
    "device for the manifest": (
        instead("manifest.json", lambda path: path.symlink_to("/dev/zero")),
        "manifest.json: not a plain",
    ),
    "folder for a file": (instead("labels.txt", Path.mkdir), "labels.txt: no such file"),
    "deep JSON": (raw_manifest("[" * 1_000_000), "manifest.json: "),
    "deep JSON in a field": (
        raw_manifest('{"metadata": ' + '{"a":' * 500_000 + "1" + "}" * 500_000 + "}"),
        "manifest.json: ",
    ),
    "huge JSON": (raw_manifest('"' + "x" * MAX_MANIFEST_BYTES + '"'), "manifest.json: larger"),
    "long number": (
        raw_manifest('{"version": ' + "9" * (MAX_MANIFEST_BYTES - 100) + "}"),
        "manifest.json: ",
    ),
    "many unknown keys": (
        raw_manifest(json.dumps({f"key{number}": 1 for number in range(200_000)})),
        "manifest.json: 200,0.. faults",
    ),
    "key that commands a terminal": (
        manifest(lambda m: m.update({"\x1b[2J\x1b]0;owned\x07": 1})),
        "manifest.json: ",
    ),
    "metadata that commands a terminal": (
        manifest(lambda m: m.update(metadata={"note": "\x1b[31mred"})),
        "manifest.json: .*control characters",
    ),
    "huge input": (
        manifest(lambda m: m["input"].update(height=1 << 40, width=1 << 40, resize=1 << 40)),
        "manifest.json: input: .*above the limit",
    ),
    "huge resize": (
        manifest(lambda m: m["input"].update(resize=1 << 30)),
        "manifest.json: input: .*above the limit",
    ),
    "a billion classes": (
        manifest(lambda m: m.update(classes=1_000_000_000)),
        "labels.txt: 3 labels for 1000000000 classes",
    ),
    "label that commands a terminal": (
        labels("red\n\x1b[2J\nblue\n"),
        "labels.txt: line 2 has control characters",
    ),
    "label with a C1 control": (
        labels("red\ngreen\n\x9b31mblue\n"),
        "labels.txt: line 3 has control characters",
    ),
    "label with a line of a log": (
        labels("red\rlevel=error forged\ngreen\nblue\n"),
        "labels.txt: 4 labels for 3 classes",
    ),
    "label in another order": (
        labels("red\ngreen\n\u202eeulb\n"),
        "labels.txt: line 3 has control characters",
    ),
    "long label": (
        labels("x" * (MAX_LABEL_CHARACTERS + 1) + "\ngreen\nblue\n"),
        "labels.txt: line 1 is longer than",
    ),
    "huge labels": (labels("x" * (MAX_LABELS_BYTES + 1)), "labels.txt: larger than the limit"),
    "weights outside": (graph(external_weight), "model.onnx: .*external data"),
    "weights only named outside": (graph(only_named_external), "model.onnx: .*external data"),
    "constant outside, in a branch": (
        graph(external_constant_in_a_branch),
        "model.onnx: .*external data",
    ),
    "sparse weights outside": (graph(external_sparse), "model.onnx: .*external data"),
    "constant outside, in a function": (
        graph(external_in_a_function),
        "model.onnx: .*external data",
    ),
    "engine of its own": (graph(engine_of_its_own), "model.onnx: .*EPContext"),
    "graphs within graphs": (graph(deep), "model.onnx: .*within each other"),
    "no graph": (raw_graph(b"\xff" * 1000), "model.onnx: not a graph"),
    "empty graph": (raw_graph(b""), "model.onnx: not a graph"),
    "a number without end": (raw_graph(b"\x08" + b"\xff" * 50_000_000), "model.onnx: not a graph"),
    "a million empty nodes": (
        raw_graph(b"\x3a" + b"\x82\x9b\x80\x01" + b"\x0a\x00" * (MAX_FIELDS + 1)),
        "model.onnx: ",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_is_refused_in_one_short_line_and_soon(write_bundle: Write, name: str) -> None:
    attack, wanted = ATTACKS[name]
    path = write_bundle()
    attack(path)
    began = time.process_time()
    with pytest.raises(BundleError, match=f"^{wanted}") as refused:
        Bundle.open(path)
    assert time.process_time() - began < 10
    line = str(refused.value)
    assert line.isprintable()
    assert len(line) < 6000
    assert str(path) not in line


@pytest.mark.parametrize("name", ["a million empty nodes", "a number without end", "long number"])
def test_is_refused_in_little_memory(write_bundle: Write, name: str) -> None:
    attack, _ = ATTACKS[name]
    path = write_bundle()
    attack(path)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError):
            Bundle.open(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 512 << 20


def test_lines_in_metadata_and_labels_of_all_scripts_are_taken(write_bundle: Write) -> None:
    path = write_bundle()
    change_manifest(path, lambda m: m.update(metadata={"note": "two\n\tlines"}))
    labels("größe, Ähre\n猫 🐈\nقطة\n")(path)
    assert Bundle.open(path).labels[2] == "قطة"
