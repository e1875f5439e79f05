"""A server and commands where no file can be written, as in a container with --read-only."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub

from ...conftest import FOVEATE
from .conftest import red, running

READ_ONLY = """
set -e
mount --make-rprivate /
for place in $(cut -d " " -f 2 /proc/mounts | sort -u); do
    case $place in /proc* | /sys* | /dev*) ;; *) mount -o remount,bind,ro "$place" ;; esac
done
exec "$@"
"""
"""Runs a command in a mount namespace of its own, whose file systems are read-only."""

PREFIX = ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh")


@pytest.fixture(scope="module", autouse=True)
def _allowed() -> None:
    """Skip where this machine lets nobody make such a namespace."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    tried = subprocess.run([*PREFIX, "touch", Path.cwd() / "x"], capture_output=True, check=False)
    if b"Read-only file system" not in tried.stderr:
        pytest.skip("no read-only file systems can be made")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_needs_no_file_of_its_own(repository: Path, tmp_path: Path, workers: int) -> None:
    log = tmp_path / "log"
    options = ("--metrics-address", "127.0.0.1:0", "--workers", workers)
    with running(repository, log, *options, prefix=PREFIX) as server:
        with server.channel() as channel:
            assert ClassifierServiceStub(channel).Classify(red(), timeout=60).predictions
        assert server.stop() == 0
    text = log.read_text(encoding="utf-8")
    assert "Traceback" not in text
    assert " ERROR " not in text


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("batch", "PICTURE", "--repository", "REPOSITORY", "--out", "results.csv"), "results.csv"),
        (
            ("classify", "PICTURE", "--repository", "REPOSITORY", "--cam", "--out", "new"),
            "Read-only file system: new",
        ),
        (("web", "--address", "127.0.0.1:1", "--listen", "127.0.0.1:0"), "temporary directory"),
        (("export", "foveate:lenet5", "--repository", "new", "--name", "new"), "temporary direct"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_command_that_cannot_write_says_so_in_a_line(
    repository: Path, photograph: Path, command: tuple[str, ...], told: str
) -> None:
    places = {"PICTURE": photograph, "REPOSITORY": repository}
    done = subprocess.run(
        [*PREFIX, FOVEATE, *(places.get(word, word) for word in command)],
        env={**os.environ, "TMPDIR": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    *progress, line = done.stderr.splitlines()
    assert line.startswith(f"foveate {command[0]}: ")
    assert told in line
    # How far an export comes depends on what its libraries have to write.
    assert all(each.endswith(" s") for each in progress)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"
