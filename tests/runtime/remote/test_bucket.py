"""A bundle in a bucket: S3 by moto, Azure by Azurite, and the client of Google Cloud Storage."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands import pull, push
from foveate_runtime.remote import bucket
from foveate_runtime.remote.location import Location
from foveate_runtime.remote.mirror import Mirror

from .clouds import CLOUDS, Cloud
from .conftest import newest

pytestmark = pytest.mark.network


@pytest.fixture(params=CLOUDS)
def cloud(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cloud]:
    """Run a store of each kind with an empty bucket, and have the environment name it."""
    # A few short tries: nothing is far away.
    monkeypatch.setattr(bucket, "_RETRIES", 1)
    run = CLOUDS[request.param]
    with run(tmp_path_factory, tmp_path / "cloud.log", monkeypatch.setenv) as found:
        yield found


@pytest.fixture
def mirror(cloud: Cloud, bundles: Path, tmp_path: Path) -> Mirror:
    """Return a mirror that has fetched version 1, which was pushed; version 2 is there as well."""
    mirror = _mirror_of(cloud.url, tmp_path)
    assert push.main([str(bundles / "colours/1"), cloud.url]) == 0
    assert mirror.sync() == []
    assert push.main([str(bundles / "colours/2"), cloud.url]) == 0
    return mirror


def _mirror_of(url: str, tmp_path: Path) -> Mirror:
    return Mirror(Location.parse(url), tmp_path / "mirror", newest)


def _versions(tmp_path: Path) -> list[int]:
    """Return the versions in the mirror, each of which is whole."""
    found = sorted(path for path in (tmp_path / "mirror/colours").iterdir())
    for path in found:
        Bundle.open(path)  # compares every digest
    return [int(path.name) for path in found]


def test_a_bundle_goes_there_and_back_and_outlives_the_bucket(
    cloud: Cloud, bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = cloud.url
    assert push.main([str(bundles / "colours/1"), url]) == 0
    assert push.main([str(bundles / "colours/1"), url]) == 0
    assert capsys.readouterr().out == f"{url}/colours/1\n" * 2
    folder = tmp_path / "pulled"
    assert pull.main([url, "--repository", str(folder)]) == 0
    assert Bundle.open(folder / "colours/1").digest == Bundle.open(bundles / "colours/1").digest

    other = shutil.copytree(bundles / "colours/1", tmp_path / "other/colours/1") / "manifest.json"
    other.write_text(other.read_text("utf-8").replace("tests:colours", "tests:others"))
    capsys.readouterr()
    assert push.main([str(other.parent), url]) == 1
    assert "versions are never overwritten" in capsys.readouterr().err
    none = url.replace("bucket", "none")
    assert pull.main([none, "--repository", str(folder)]) == 1
    assert capsys.readouterr().err == f"foveate pull: {none}: there is no such bucket\n"

    mirror = _mirror_of(url, tmp_path)
    assert mirror.sync() == []
    assert push.main([str(bundles / "colours/2"), url]) == 0
    # The server is gone: nothing listens there.
    cloud.process.send_signal(signal.SIGKILL)
    cloud.process.wait()
    warnings: list[str] = []
    mirror.open(warnings.append)
    assert warnings == [f"{url}: it does not answer; what was fetched before is used"]
    assert _versions(tmp_path) == [1]


def test_a_transfer_that_is_cut_leaves_the_old_version_and_is_tried_again(
    cloud: Cloud, mirror: Mirror, tmp_path: Path
) -> None:
    cloud.middle.cut = "/2/model.onnx"
    warnings: list[str] = []
    mirror.open(warnings.append)
    (warning,) = warnings
    assert warning.startswith(cloud.url)
    assert _versions(tmp_path) == [1]
    cloud.middle.cut = ""
    assert mirror.sync() == []
    assert _versions(tmp_path) == [1, 2]


def test_a_version_without_one_of_its_files_leaves_the_old_one(
    cloud: Cloud, mirror: Mirror, tmp_path: Path
) -> None:
    store = bucket._open(Location.parse(cloud.url))
    obstore.delete(store, "colours/2/model.onnx")
    assert mirror.sync() == [f"{cloud.url}/colours/2: model.onnx: no such file"]
    assert _versions(tmp_path) == [1]


def test_a_manifest_that_changes_there_is_fetched_again(
    cloud: Cloud, mirror: Mirror, tmp_path: Path
) -> None:
    assert mirror.sync() == []
    store = bucket._open(Location.parse(cloud.url))
    manifest = "colours/2/manifest.json"
    text = bytes(obstore.get(store, manifest).bytes())
    obstore.put(store, manifest, text.replace(b"tests:colours", b"tests:others"))
    assert mirror.sync() == []
    assert Bundle.open(tmp_path / "mirror/colours/2").manifest.classifier == "tests:others"


@pytest.mark.parametrize("cloud", ["az"], indirect=True)
def test_credentials_that_are_refused_leave_the_old_version(
    cloud: Cloud, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    warnings: list[str] = []
    mirror.open(warnings.append)
    assert warnings == [f"{cloud.url}: access is denied; what was fetched before is used"]
    assert _versions(tmp_path) == [1]


@pytest.mark.parametrize("cloud", ["s3"], indirect=True)
def test_keys_that_s3_does_not_know_leave_the_old_version(
    cloud: Cloud, mirror: Mirror, tmp_path: Path
) -> None:
    # From now on moto wants the keys of a user, and has none.
    cloud.post("/moto-api/reset-auth", b"0")
    warnings: list[str] = []
    mirror.open(warnings.append)
    assert warnings == [f"{cloud.url}: access is denied; what was fetched before is used"]
    assert _versions(tmp_path) == [1]
