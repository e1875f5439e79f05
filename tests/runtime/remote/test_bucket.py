"""A bundle in a bucket of S3: moto's server, which has an environment of its own."""

import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands import pull, push
from foveate_runtime.remote.location import Location
from foveate_runtime.remote.mirror import Mirror

from ...environment import make_environment
from .conftest import free_port, listening, newest

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return moto's server; its requirements contradict those of this environment."""
    python = make_environment(tmp_path_factory.mktemp("moto") / "venv", "moto[server]>=5")
    return python.with_name("moto_server")


@pytest.fixture
def s3(moto: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen]:
    """Run an S3 with a bucket, and have the environment name it; yield its process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    variables = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command = [moto, "-H", "127.0.0.1", "-p", port]
    with listening(command, port, tmp_path / "moto.log") as process:
        make = urllib.request.Request(f"{url}/bucket", method="PUT")  # noqa: S310 - our own
        urllib.request.urlopen(make, timeout=60).close()  # noqa: S310 - our own
        yield process


def test_a_bundle_goes_there_and_back_and_outlives_the_bucket(
    s3: subprocess.Popen,
    bundles: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = "s3://bucket/models"
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
    assert pull.main(["s3://none/models", "--repository", str(folder)]) == 1
    assert capsys.readouterr().err == "foveate pull: s3://none/models: there is no such bucket\n"

    mirror = Mirror(Location.parse(url), tmp_path / "mirror", newest)
    assert mirror.sync() == []
    assert push.main([str(bundles / "colours/2"), url]) == 0
    # A connection that is cut in the midst: the server is there and answers nothing.
    s3.send_signal(signal.SIGKILL)
    s3.wait()
    warnings: list[str] = []
    mirror.open(warnings.append)
    assert warnings == [f"{url}: it does not answer; what was fetched before is used"]
    Bundle.open(tmp_path / "mirror/colours/1")
