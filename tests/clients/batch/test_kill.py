"""kill -9 at random moments loses no result and doubles none."""

import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ...waiting import wait_until

KILLS = 10
COPIES = 4
"""Of the sixty crops: 240 pictures."""


@pytest.fixture
def pictures(folder, photographs, tmp_path):
    root = tmp_path / "pictures"
    for copy in range(COPIES):
        shutil.copytree(folder, root / str(copy))
    (root / "broken.png").write_bytes(b"not a picture")
    return root


def stamp(journal: Path) -> list[int]:
    """Return what changes with every write to a journal."""
    found = []
    for file in (journal, journal.with_name(f"{journal.name}-wal")):
        with suppress(FileNotFoundError):
            found.append(file.stat().st_mtime_ns)
    return found


def test_a_run_that_is_killed_again_and_again_ends_like_one_that_was_not(
    pictures, repository, tmp_path
):
    def start(out):
        """Start a run, and return it as soon as its work begins."""
        journal = out.with_name(f"{out.name}.journal")
        before = stamp(journal)
        command = [sys.executable, "-m", "foveate_client", "batch", pictures, "--ordered"]
        process = subprocess.Popen(
            [*command, "--repository", repository, "--out", out, "--embeddings", "last"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: process.poll() is not None or stamp(journal) != before)
        return process

    undisturbed = tmp_path / "undisturbed.parquet"
    process = start(undisturbed)
    began = time.monotonic()
    assert process.wait() == 1  # one picture is broken
    length = time.monotonic() - began
    expected = pq.read_table(undisturbed)
    errors = undisturbed.with_name("undisturbed.parquet.errors.jsonl").read_bytes()
    assert len(expected) == 60 * COPIES

    out = tmp_path / "killed.parquet"
    journal = out.with_name("killed.parquet.journal")
    moments = random.Random(5)  # noqa: S311 - moments, not secrets
    kills = 0
    while kills < KILLS:
        process = start(out)
        try:
            process.wait(timeout=moments.uniform(0, length))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        if process.returncode == 1:
            assert pq.read_table(out).equals(expected)
            assert not journal.exists()
            out.unlink()
    assert start(out).wait() == 1
    assert pq.read_table(out).equals(expected)
    assert out.with_name("killed.parquet.errors.jsonl").read_bytes() == errors
    assert not journal.exists()
