"""A small bundle, and a place that keeps it in a folder."""

import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError

import pytest

from foveate_runtime.remote.location import Location
from foveate_runtime.remote.mirror import Mirror

from ...colours import write_colour_bundle
from ...waiting import wait_until

Foveate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """Return a repository of the bundle of colours, in two versions."""
    folder = tmp_path / "bundles"
    for version in (1, 2):
        write_colour_bundle(folder, version=version)
    return folder


@pytest.fixture
def place(tmp_path: Path, bundles: Path) -> Path:
    """Return the folder of a place that holds version 1."""
    folder = tmp_path / "place"
    shutil.copytree(bundles / "colours/1", folder / "colours/1")
    return folder


def newest(_model: str, versions: Sequence[int]) -> Iterable[int]:
    """Choose the newest version of each model."""
    return (max(versions),)


@pytest.fixture
def mirror(tmp_path: Path, place: Path) -> Mirror:
    """Return a mirror of the place."""
    return Mirror(Location.parse(place.as_uri()), tmp_path / "mirror", newest)


@contextmanager
def listening(command: list[object], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process of its own until the block ends."""
    url = f"http://127.0.0.1:{port}/"

    def answers() -> bool:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except HTTPError as error:
            error.close()
        except OSError:
            return False
        return True

    with (
        log.open("w", encoding="utf-8") as output,
        subprocess.Popen([*map(str, command)], stdout=output, stderr=output) as process,
    ):
        try:
            wait_until(answers, told=lambda: log.read_text(encoding="utf-8"))
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith(("AWS_", "HF_"))]:
        monkeypatch.delenv(name)
