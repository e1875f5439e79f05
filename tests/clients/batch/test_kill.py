"""kill -9 at random moments loses no result and doubles none."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

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


def test_a_run_that_is_killed_again_and_again_ends_like_one_that_was_not(
    pictures, repository, tmp_path
):
    def start(out):
        command = [sys.executable, "-m", "foveate_client", "batch", pictures, "--ordered"]
        return subprocess.Popen(
            [*command, "--repository", repository, "--out", out, "--embeddings", "last"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    began = time.monotonic()
    undisturbed = tmp_path / "undisturbed.parquet"
    assert start(undisturbed).wait() == 1  # one picture is broken
    length = time.monotonic() - began
    expected = pq.read_table(undisturbed)
    errors = undisturbed.with_name("undisturbed.errors.jsonl").read_bytes()
    assert len(expected) == 60 * COPIES

    out = tmp_path / "killed.parquet"
    journal = out.with_name("killed.parquet.journal")
    moments = random.Random(5)  # noqa: S311 - moments, not secrets
    kills = with_journal = 0
    while kills < KILLS:
        process = start(out)
        try:
            process.wait(timeout=moments.uniform(0.4, 1.05) * length)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            with_journal += journal.exists()
        if process.returncode == 1:
            assert pq.read_table(out).equals(expected)
            assert not journal.exists()
            out.unlink()
    assert with_journal  # some were killed amid their work
    assert start(out).wait() == 1
    assert pq.read_table(out).equals(expected)
    assert out.with_name("killed.errors.jsonl").read_bytes() == errors
    assert not journal.exists()
