"""A stop ends every process in its time, whatever engines, loads and libraries do."""

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path

import onnx
import psutil
import pytest

from foveate.v1.classifier_service_pb2 import ClassifyRequest, ListModelsRequest, RawImage
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub

from ...colours import relist
from ...conftest import BOTH, FOVEATE
from ...waiting import LIMIT_SECONDS, wait_until
from .conftest import trap

SHORT = ("--shutdown-delay", "0", "--shutdown-timeout", "1")


def family(server) -> list[psutil.Process]:
    """Return the processes of a server: those that it has started, and itself."""
    process = psutil.Process(server.process.pid)
    return [*process.children(recursive=True), process]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that have not ended; nobody may have asked yet how an orphan did."""
    left = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
    return left


def quiet_in(home: Path) -> dict[str, str]:
    """Return the environment of a server outside continuous integration, at home in `home`."""
    hidden = {"CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY"}
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**inherited, "HOME": str(home), "XDG_CACHE_HOME": str(home)}


@pytest.mark.parametrize(
    ("backend", "workers"),
    [*product(("onnxruntime", "openvino", "torch"), (1, 2)), ("torch_compile", 2)],
)
def test_every_process_ends_and_no_engine_leaves_a_trace(
    start: Callable, tmp_path: Path, backend: str, workers: int
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    # A graph compiled for one size of batch takes least.
    few = ("--max-batch", 1) if backend == "torch_compile" else ()
    server = start(*SHORT, *few, "--workers", workers, "--backend", backend, env=quiet_in(home))
    server.classify()
    processes = family(server)
    # A supervisor has its workers, and nobody has forked anything else.
    assert len(processes) == (1 if workers == 1 else 1 + workers)
    assert server.stop() == 0
    assert alive(processes) == []
    assert list(home.rglob("*")) == []


CHATTY = """
import os, sys, threading, time
if "foveate_serve.workers.worker" in sys.orig_argv:
    print("a library says hello")
    child = os.fork()
    if not child:
        time.sleep(600)
        os._exit(0)

    def talk():
        for _ in range(100):
            print("x" * 10_000, flush=True)

    threading.Thread(target=talk, daemon=True).start()
"""
"""What a library may do when it is imported: print, more than a pipe holds, and fork."""


@BOTH
def test_libraries_that_print_and_fork_break_no_supervisor(start: Callable, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CHATTY, encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    server = start(*SHORT, "--workers", "2", env={**os.environ, "PYTHONPATH": path})
    for _ in range(4):
        server.classify()
    wait_until(lambda: server.log.read_text(encoding="utf-8").count("x" * 10_000) == 200)
    processes = family(server)
    assert len(processes) == 5  # a supervisor, its workers, and what these have forked
    assert server.stop() == 0
    assert alive(processes) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_libraries_that_do_not_end_keep_no_process(
    start: Callable, tmp_path: Path, workers: int
) -> None:
    hook = "import atexit, time\natexit.register(time.sleep, 600)\n"
    (tmp_path / "sitecustomize.py").write_text(hook, encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    server = start(*SHORT, "--workers", workers, env={**os.environ, "PYTHONPATH": path})
    processes = family(server)
    assert server.stop() == 0
    assert alive(processes) == []


def test_a_worker_that_does_not_end_is_killed(start: Callable) -> None:
    server = start(*SHORT, "--workers", "2")
    stuck, *others = family(server)
    stuck.suspend()
    assert server.stop() == 0
    assert alive([stuck, *others]) == []
    assert "1 workers have not ended" in server.log.read_text(encoding="utf-8")


@BOTH
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_does_not_wait_for_a_run(
    start: Callable, write_bundle: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    path = write_bundle()
    onnx.save(trap(onnx.load(path / "model.onnx")), path / "model.onnx")
    relist(path, "model.onnx")
    server = start(*SHORT, "--workers", workers, repository=tmp_path / "repository")
    processes = family(server)
    unlucky = ClassifyRequest(raw=RawImage(height=8, width=8, channels=3, data=bytes([13]) * 192))
    with server.channel() as channel:
        call = ClassifierServiceStub(channel).Classify.future(unlucky, timeout=60)
        # After which it has been taken.
        ClassifierServiceStub(channel).ListModels(ListModelsRequest(), timeout=60)
        assert server.stop() == 0
        assert call.exception() is not None
    assert alive(processes) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_does_not_wait_for_a_load(
    write_bundle: Callable[..., Path], tmp_path: Path, workers: int
) -> None:
    path = write_bundle()
    # The warm-up's pictures are black.
    onnx.save(trap(onnx.load(path / "model.onnx"), brightest=0), path / "model.onnx")
    relist(path, "model.onnx")
    log = tmp_path / "log"
    command = [FOVEATE, "serve", "--repository", path.parents[1], "--address", "127.0.0.1:0"]
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(
            [*command, *SHORT, "--workers", str(workers)], stdout=subprocess.PIPE, stderr=stderr
        ) as server,
    ):
        ours = psutil.Process(server.pid)

        def loading() -> bool:
            """Whether every process that is to serve has opened the graph."""
            found = ours.children() if workers > 1 else [ours]
            return len(found) == workers and all(
                any(place.path.endswith("model.onnx") for place in process.memory_maps())
                for process in found
            )

        wait_until(loading, told=lambda: log.read_text(encoding="utf-8"))
        processes = [*ours.children(), ours]
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=LIMIT_SECONDS) == 0
        assert server.stdout.read() == b""
    assert alive(processes) == []
    assert "Traceback" not in log.read_text(encoding="utf-8")
