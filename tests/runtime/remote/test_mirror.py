"""A mirror: what is whole appears at once, and what was there stays where anything is wrong."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from foveate_runtime.bundle import signing
from foveate_runtime.bundle.bundle import Bundle, BundleError
from foveate_runtime.commands import pull, push
from foveate_runtime.remote import fetching
from foveate_runtime.remote import mirror as mirroring
from foveate_runtime.remote.location import Location
from foveate_runtime.remote.mirror import Mirror
from foveate_runtime.remote.store import RemoteError

from ...waiting import wait_until
from .conftest import newest


def versions(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "colours").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


def rewrite(bundle: Path, **fields: object) -> None:
    """Change fields of a manifest, as a hostile place may."""
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), encoding="utf-8")


def test_the_newest_version_is_fetched_and_whole(
    mirror: Mirror, place: Path, bundles: Path, folder: Path
) -> None:
    shutil.copytree(bundles / "colours/2", place / "colours/2")
    assert mirror.sync() == []
    assert versions(folder) == ["2"]
    assert Bundle.open(folder / "colours/2").digest == Bundle.open(bundles / "colours/2").digest


def test_a_new_version_is_fetched_and_the_old_one_stays_until_it_is_removed_there(
    mirror: Mirror, place: Path, bundles: Path, folder: Path
) -> None:
    mirror.sync()
    shutil.copytree(bundles / "colours/2", place / "colours/2")
    mirror.sync()
    assert versions(folder) == ["1", "2"]
    shutil.rmtree(place / "colours/1")
    mirror.sync()
    assert versions(folder) == ["2"]
    assert len(list((folder / ".bundles").iterdir())) == 1


def test_a_version_is_replaced_where_its_manifest_changes(
    mirror: Mirror, place: Path, folder: Path
) -> None:
    mirror.sync()
    rewrite(place / "colours/1", classifier="tests:others")
    assert mirror.sync() == []
    assert Bundle.open(folder / "colours/1").manifest.classifier == "tests:others"


def test_nothing_is_read_again_that_has_not_changed(
    mirror: Mirror, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.sync()
    monkeypatch.setattr(mirroring, "read_manifest", None)
    assert mirror.sync() == []
    assert versions(folder) == ["1"]


def remove_file(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()


def change_a_byte(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)


def cut_a_file(bundle: Path) -> None:
    os.truncate(bundle / "model.onnx", 100)


def cut_the_manifest(bundle: Path) -> None:
    os.truncate(bundle / "manifest.json", 100)


def rename(bundle: Path) -> None:
    rewrite(bundle, name="others")


def name_a_file(name: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
        entry = {"sha256": sha256(b"hostile").hexdigest(), "size": 7}
        rewrite(bundle, files={**manifest["files"], name: entry})

    return change


def name_the_manifest(bundle: Path) -> None:
    name_a_file("manifest.json")(bundle)


def ask_for_too_much(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    entry = {"sha256": "0" * 64, "size": 1 << 50}
    rewrite(bundle, files={**manifest["files"], "huge": entry})


BROKEN = [
    (remove_file, "model.onnx: no such file"),
    (change_a_byte, "model.onnx: its SHA-256 is not the manifest's"),
    (cut_a_file, "model.onnx: 100 bytes, and the manifest says"),
    (cut_the_manifest, "manifest.json: "),
    (rename, "it is others/2, and its folder colours/2"),
    (name_a_file("../../escaped"), "leaves the bundle"),
    (name_a_file("/tmp/escaped"), "leaves the bundle"),  # noqa: S108 - it is refused
    (name_a_file("with\nline"), "cannot be printed"),
    (name_the_manifest, "manifest.json: no such file"),
    (ask_for_too_much, "and the limit is"),
]


@pytest.mark.parametrize(
    ("damage", "told"), BROKEN, ids=[told.replace("/", "_") for _, told in BROKEN]
)
def test_a_version_that_is_not_whole_leaves_the_old_one(
    mirror: Mirror, place: Path, bundles: Path, damage: Callable[[Path], None], told: str
) -> None:
    mirror.sync()
    folder = place.with_name("mirror")
    shutil.copytree(bundles / "colours/2", place / "colours/2")
    damage(place / "colours/2")
    (problem,) = mirror.sync()
    assert told in problem
    assert problem.startswith(f"{place.as_uri()}/colours/2: ")
    assert "\n" not in problem
    assert versions(folder) == ["1"]
    assert not (folder / ".scratch").exists()
    # It stays a problem as long as it is there, and goes with it.
    assert mirror.sync() == [problem]
    shutil.rmtree(place / "colours/2")
    shutil.copytree(bundles / "colours/2", place / "colours/2")
    assert mirror.sync() == []
    assert versions(folder) == ["1", "2"]


def test_a_version_without_a_manifest_is_not_there_yet_and_not_removed(
    mirror: Mirror, place: Path, bundles: Path, folder: Path
) -> None:
    mirror.sync()
    shutil.copytree(bundles / "colours/2", place / "colours/2")
    (place / "colours/2/manifest.json").unlink()
    (place / "colours/1/manifest.json").unlink()
    assert mirror.sync() == []
    assert versions(folder) == ["1"]


def test_a_place_that_is_empty_or_gone_removes_nothing(
    mirror: Mirror, place: Path, folder: Path
) -> None:
    mirror.sync()
    shutil.rmtree(place / "colours")
    assert mirror.sync() == []
    assert versions(folder) == ["1"]
    place.rmdir()
    with pytest.raises(RemoteError, match="there is no such folder"):
        mirror.sync()
    warnings: list[str] = []
    assert mirror.open(warnings.append) == folder
    assert warnings == [
        f"{place.as_uri()}: there is no such folder; what was fetched before is used"
    ]
    Bundle.open(folder / "colours/1")


def test_a_mirror_without_anything_says_why(tmp_path: Path, folder: Path) -> None:
    mirror = Mirror(Location.parse((tmp_path / "none").as_uri()), folder, newest)
    with pytest.raises(RemoteError, match="there is no such folder"):
        mirror.open(print)


def test_what_is_damaged_in_the_mirror_is_fetched_anew(
    mirror: Mirror, place: Path, folder: Path
) -> None:
    mirror.sync()
    change_a_byte(folder / "colours/1")
    # Another process, which has not checked it yet.
    other = Mirror(Location.parse(place.as_uri()), folder, newest)
    assert other.sync() == []
    Bundle.open(folder / "colours/1")


def test_a_long_listing_is_refused(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "MAX_FILES", 2)
    with pytest.raises(RemoteError, match="lists more than 2 files"):
        mirror.sync()


def test_names_that_no_model_may_have_are_passed_over(
    mirror: Mirror, place: Path, bundles: Path, folder: Path
) -> None:
    for name in (".hidden", "with space", "-flag"):
        shutil.copytree(bundles / "colours/1", place / name / "1")
    shutil.copytree(bundles / "colours/1", place / "colours/01")
    assert mirror.sync() == []
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == ["colours"]
    assert versions(folder) == ["1"]


def test_a_name_with_control_characters_is_refused_in_one_line(
    mirror: Mirror, place: Path, folder: Path
) -> None:
    mirror.sync()
    (place / "a\x1b[31m\nb").write_text("")
    with pytest.raises(RemoteError) as caught:
        mirror.sync()
    assert str(caught.value).isprintable()
    assert versions(folder) == ["1"]


def test_a_link_in_the_place_cannot_bring_a_file_of_this_machine(
    mirror: Mirror, place: Path, folder: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 7)
    name_a_file("stolen")(place / "colours/1")
    (place / "colours/1/stolen").symlink_to(secret)
    (problem,) = mirror.sync()
    assert "stolen: its SHA-256 is not the manifest's" in problem


def test_following_brings_what_is_new_and_tells_a_problem_once(
    mirror: Mirror, place: Path, bundles: Path, folder: Path
) -> None:
    mirror.sync()
    told: list[str] = []
    with mirror.following(0.01, told.append):
        shutil.copytree(bundles / "colours/2", place / "colours/2.partial")
        cut_a_file(place / "colours/2.partial")
        (place / "colours/2.partial").rename(place / "colours/2")
        wait_until(lambda: len(told) > 0)
        (place / "colours/2").rename(place / "colours/2.partial")
        shutil.copytree(bundles / "colours/2", place / "colours/2.whole")
        (place / "colours/2.whole").rename(place / "colours/2")
        wait_until((folder / "colours/2").exists)
    assert len(told) == 1
    assert versions(folder) == ["1", "2"]


def test_a_signature_goes_with_its_bundle_also_when_it_was_made_after_the_push(
    tmp_path: Path, bundles: Path
) -> None:
    key = Ed25519PrivateKey.generate()
    keys = tmp_path / "keys.pem"
    keys.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    url = (tmp_path / "shelf").as_uri()
    for number in (1, 2):
        assert push.main([str(bundles / f"colours/{number}"), url]) == 0
    signing.sign(bundles / "colours/2", key)
    assert push.main([str(bundles / "colours/2"), url]) == 0
    assert pull.main([url, "--repository", str(tmp_path / "pulled")]) == 0
    check = signing.Keys.read(keys).check
    Bundle.open(tmp_path / "pulled/colours/2", check_manifest=check)
    with pytest.raises(BundleError, match="not signed"):
        Bundle.open(tmp_path / "shelf/colours/1", check_manifest=check)
