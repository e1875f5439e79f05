"""The disk and the clock."""

import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..conftest import FOVEATE
from .bench import MODEL, Bench, Seen, Skipped, seen
from .honest import pictures

_DISK_BYTES = 2 << 20


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a disk of so many bytes, which takes root."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise Skipped("no disk can be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk_of_a_batch(bench: Bench) -> Seen:
    """a disk that is full in the midst of a batch, and has room again"""
    photographs = bench.folder / "photographs"
    photographs.mkdir()
    for number in range(40):
        picture = pictures()[number % 8]
        (photographs / f"{number:03}.jpg").write_bytes(picture)
    with _disk(bench.folder / "disk", _DISK_BYTES) as disk:
        out = disk / "results.jsonl"
        filler = disk / "filler"
        filler.write_bytes(bytes(_DISK_BYTES - (24 << 10)))
        command = [FOVEATE, "batch", photographs, "--out", out, "--top-k", "100"]
        command += ["--repository", bench.repository, "--model", MODEL]
        failed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert failed.returncode == 1, failed
        assert "No space left on device" in failed.stderr, failed.stderr
        assert "Traceback" not in failed.stderr, failed.stderr
        filler.unlink()
        subprocess.run(command, capture_output=True, check=True)
        rows = out.read_text(encoding="utf-8").splitlines()
    assert len(rows) == 40
    return Seen({}, 0.0, "one line says so; the same command goes on where it stopped")


def full_disk_of_an_export(bench: Bench) -> Seen:
    """a disk that is full when a bundle is published"""
    with _disk(bench.folder / "disk", _DISK_BYTES) as disk:
        command = [FOVEATE, "export", "foveate:lenet5", "--weights", "random:0"]
        command += ["--repository", disk / "models", "--name", "lenet5"]
        (disk / "filler").write_bytes(bytes(_DISK_BYTES - (64 << 10)))
        failed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert failed.returncode == 1, failed
        assert "No space left on device" in failed.stderr, failed.stderr
        assert "Traceback" not in failed.stderr, failed.stderr
        left = list((disk / "models").rglob("manifest.json"))
        assert not left, left
    return Seen({}, 0.0, "one line says so; no version is left behind")


def full_disk_of_a_training(bench: Bench) -> Seen:
    """a disk that is full when a checkpoint is written"""
    with _disk(bench.folder / "disk", 64 << 10) as disk:
        command = [FOVEATE, "train", "mnist", "--model", "foveate:lenet5", "--epochs", "1"]
        command += ["--out", disk / "run"]
        failed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert failed.returncode == 1, failed
        assert "No space left on device" in failed.stderr, failed.stderr
        assert "Traceback" not in failed.stderr, failed.stderr
    return Seen({}, 0.0, "one line says so")


def changing_clock(bench: Bench) -> Seen:
    """the clock, set a day forward and two days back"""
    library = Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or "") / "faketime"
    if not shutil.which("faketime"):
        raise Skipped("faketime is not installed")
    offset = bench.folder / "offset"
    offset.write_text("+0\n", encoding="utf-8")
    environment = {
        "LD_PRELOAD": str(library / "libfaketimeMT.so.1"),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        # The clock that deadlines use is not set with the other.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with (
        bench.serving("--log-requests", environment=environment) as server,
        bench.asking(server.address) as honest,
    ):
        honest.breaks()
        for shift in ("+1d", "-2d"):
            offset.write_text(f"{shift}\n", encoding="utf-8")
            honest.hold(1.0)
        honest.settle()
        log = server.log.read_text(encoding="utf-8")
        tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86_400))
        assert tomorrow in log, "the clock was not changed"
        return seen(honest, "no call fails", allowed=frozenset())


FAULTS = (
    full_disk_of_a_batch,
    full_disk_of_an_export,
    full_disk_of_a_training,
    changing_clock,
)
