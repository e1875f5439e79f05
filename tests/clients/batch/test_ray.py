"""`--engine ray`: Ray Data's workers answer as the process itself; Ray has its own environment."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ...ray_environment import ray_environment, without_ray
from ...waiting import wait_until

COPIES = 40
"""Of the sixty crops: 2,400 pictures, in blocks of four."""
START_SECONDS = 240.0
"""Ray starts ten processes before the first picture."""

needs_ray = pytest.mark.network


@pytest.fixture(scope="module")
def foveate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command of an environment with Ray."""
    return ray_environment(tmp_path_factory) / "foveate"


@pytest.fixture
def pictures(folder: Path, tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for copy in range(COPIES):
        shutil.copytree(folder, root / str(copy))
    (root / "broken.png").write_bytes(b"not a picture")
    return root


@pytest.fixture
def start(
    foveate: Path, pictures: Path, repository: Path, tmp_path: Path
) -> Iterator[Callable[[Path], subprocess.Popen]]:
    """Start a run in two workers of Ray."""
    started: list[subprocess.Popen] = []

    def start(out: Path) -> subprocess.Popen:
        command = [foveate, "batch", pictures.name, "--ordered", "--embeddings", "last"]
        started.append(
            subprocess.Popen(
                [
                    *(*command, "--repository", os.path.relpath(repository, tmp_path)),
                    *("--out", out, "--engine", "ray", "--ray-workers", "2", "--in-flight", "1"),
                ],
                cwd=tmp_path,
                env=without_ray(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def workers(driver: subprocess.Popen) -> list[int]:
    """Return the workers with the model that the driver's Ray runs: children of its children."""
    parents, found = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The name, in brackets, may hold spaces.
            state = (process / "stat").read_text("utf-8").rpartition(")")[2].split()
            parents[int(process.name)] = int(state[1])
            if b"MapBatches" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return [each for each in found if driver.pid in ancestors(each, parents)]


def ancestors(process: int, parents: dict[int, int]) -> Iterator[int]:
    while process := parents.get(process, 0):
        yield process


def noted(out: Path) -> int:
    """Return when a run's journal was written to last, in nanoseconds: each commit does.

    No other process may open a journal that is in use.
    """
    wal = out.with_name(f"{out.name}.journal-wal")
    return wal.stat().st_mtime_ns if wal.exists() else 0


def in_the_midst(process: subprocess.Popen, out: Path) -> None:
    """Wait until the run has committed some results, and has more to do."""
    wait_until(lambda: workers(process) or process.poll() is not None, limit=START_SECONDS)
    # What the journal holds of the run itself was written before there were workers.
    begun = noted(out)
    wait_until(lambda: noted(out) > begun or process.poll() is not None, limit=START_SECONDS)
    assert process.poll() is None, process.stderr.read()


@needs_ray
def test_a_killed_worker_and_a_killed_driver_leave_the_table_of_a_run_without_ray(
    start, run, pictures, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    expected = tmp_path / "expected.parquet"
    code, _, _ = run(pictures.name, "--ordered", "--embeddings", "last", "--out", expected)
    assert code == 1  # one picture is broken

    out = tmp_path / "ray.parquet"
    process = start(out)
    in_the_midst(process, out)
    at_work = workers(process)
    process.kill()
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{each}").exists() for each in at_work))
    assert not out.exists()

    process = start(out)
    in_the_midst(process, out)
    os.kill(workers(process)[0], signal.SIGKILL)
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert re.search(rf"^read +{60 * COPIES + 1:,} images", told, re.MULTILINE)
    assert "done before" in told
    assert "Traceback" not in errors

    rows, wanted = pq.read_table(out), pq.read_table(expected)
    assert rows.equals(wanted)
    assert len(set(rows["image"].to_pylist())) == len(rows) == 60 * COPIES
    for name in ("{}.errors.jsonl", "{}.report.html"):
        written, like = (path.with_name(name.format(path.name)) for path in (out, expected))
        assert written.read_bytes() == like.read_bytes()


FATAL = """
import os
from functools import partial
from pathlib import Path
from foveate_client import ClassifyOptions
from foveate_client.batch.ray_data import Job, RayError, ray_answers
from foveate_client.batch.sources import Item
from foveate_client.batch.stream import Task

job = Job(
    connect=partial(os._exit, 1),
    folder=Path.cwd(),
    identity="",
    options=ClassifyOptions(model="m", version="1"),
    in_flight=1,
    patience=1,
)
try:
    with ray_answers(job, address=None, workers=1) as answers:
        list(answers([Task(0, Item("a.png", b"", None))]))
except RayError as error:
    print(error)
"""
"""A worker that ends with its first picture, as one does that its picture makes crash."""


@needs_ray
def test_a_picture_that_ends_its_worker_each_time_ends_the_run(foveate, tmp_path):
    found = subprocess.run(
        [foveate.with_name("python"), "-c", FATAL],
        check=True,
        cwd=tmp_path,
        env=without_ray(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=START_SECONDS,
    )
    assert found.stdout.startswith("Ray failed: ")
    assert len(found.stdout.splitlines()) == 1


@needs_ray
def test_what_ray_cannot_do_is_told_in_a_line(foveate, pictures, repository, tmp_path):
    command = [foveate, "batch", pictures, "--out", tmp_path / "out.csv", "--engine", "ray"]
    found = subprocess.run(
        [*command, "--repository", repository, "--ray-address", "127.0.0.1:1"],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 1
    assert "foveate batch: no Ray cluster at 127.0.0.1:1: " in found.stderr
    assert "Traceback" not in found.stderr


def test_ray_that_is_not_installed_is_told_with_the_pip_line(run, folder, tmp_path):
    code, told, errors = run(folder, "--out", tmp_path / "out.csv", "--engine", "ray")
    assert (code, told) == (1, "")
    assert errors.endswith("not installed: pip install 'foveate-client[ray]'\n")
    assert list(tmp_path.iterdir()) == []


def test_the_address_of_a_ray_client_is_a_wrong_usage(run, folder, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(
            *(folder, "--out", tmp_path / "out.csv", "--engine", "ray"),
            *("--ray-address", "ray://head:10001"),
        )
    assert "--ray-address takes HOST:PORT, not ray://head:10001" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--ray-address", "localhost:6379"), ("--ray-workers", "2")])
def test_an_option_of_ray_without_it_is_a_wrong_usage(run, folder, tmp_path, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(folder, "--out", tmp_path / "out.csv", *option)
    assert f"{option[0]} needs --engine ray" in capsys.readouterr().err
