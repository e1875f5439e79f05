"""Other servers, started with the same classifier in environments of their own."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil

from benchmarks.server import Server
from foveate.inference.open_inference_pb2 import ModelReadyRequest
from foveate.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub

ROOT = Path(__file__).parents[2]
READY_SECONDS = 180


@contextmanager
def triton(python: Path, bundle: Path, workers: int) -> Iterator[Server]:
    """Run Triton's core with its Python backend, from an environment with nvidia-pytriton.

    That package holds the server's program. A worker is a process of the
    backend; each has a session of one thread.
    """
    packages = Path(_printed(python, "import pytriton, pathlib; print(*pytriton.__path__)")).parent
    home = packages / "pytriton" / "tritonserver"
    minor = _printed(python, "import sys; print(*sys.version_info[:2], sep='.')")
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        backend = Path(folder) / "backends" / "python"
        shutil.copytree(home / "backends" / "python", backend)
        shutil.copy(home / "python_backend_stubs" / minor / "triton_python_backend_stub", backend)
        repository, model = Path(folder) / "repository", bundle.parent.name
        shutil.copytree(Path(__file__).parent / "triton" / "classifier", repository / model)
        config = repository / model / "config.pbtxt"
        text = config.read_text(encoding="utf-8")
        filled = text.replace("count: 2", f"count: {workers}")
        config.write_text(filled.replace("1000", str(_classes(bundle))), encoding="utf-8")
        command = [
            *(home / "bin" / "tritonserver", "--model-repository", repository),
            *("--backend-directory", backend.parent, "--grpc-port", str(port)),
            *("--allow-http", "false", "--allow-metrics", "false"),
        ]
        variables = {
            "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
            "FOVEATE_RIVAL_BUNDLE": str(bundle.resolve()),
            "PYTHONPATH": f"{ROOT}:{packages}",
            "PATH": f"{python.parent}:{os.environ['PATH']}",
        }
        with _running(command, variables, port, model) as server:
            yield server


@contextmanager
def mlserver(python: Path, bundle: Path, workers: int) -> Iterator[Server]:
    """Run MLServer with so many parallel workers, each with a session of one thread."""
    ports = [_free_port() for _ in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(zip(("grpc_port", "http_port", "metrics_port"), ports, strict=True))
        model = Path(folder) / bundle.parent.name
        model.mkdir()
        # Its metrics would be files in the folder that this is run from.
        more = {"parallel_workers": workers, "metrics_dir": folder}
        _write(Path(folder) / "settings.json", {**settings, **more})
        _write(
            model / "model-settings.json",
            {
                "name": model.name,
                "implementation": "benchmarks.rivals.mlserver_model.Pictures",
                "parameters": {"uri": str(bundle.resolve())},
                "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}],
                "outputs": [
                    {"name": "logits", "datatype": "FP32", "shape": [-1, _classes(bundle)]}
                ],
            },
        )
        command = [python.parent / "mlserver", "start", folder]
        with _running(command, {"PYTHONPATH": str(ROOT)}, ports[0], model.name) as server:
            yield server


@contextmanager
def _running(
    command: Sequence[str | Path], variables: Mapping[str, str], port: int, model: str
) -> Iterator[Server]:
    """Run the server until the model answers ready, and stop it afterwards."""
    environment = {**os.environ, **variables}
    # Its workers are slow to start where no bytecode may be kept.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
    with log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            address = f"127.0.0.1:{port}"
            if not _ready(process, address, model):
                log.seek(0)
                tail = log.read().decode(errors="replace")[-2000:]
                raise RuntimeError(f"{Path(command[0]).name} did not get ready:\n{tail}")
            yield Server(address, psutil.Process(process.pid))
        finally:
            process.terminate()


def _ready(process: subprocess.Popen[bytes], address: str, model: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        until = time.monotonic() + READY_SECONDS
        while process.poll() is None and time.monotonic() < until:
            try:
                request = ModelReadyRequest(name=model)
                if stub.ModelReady(request, timeout=5, wait_for_ready=True).ready:
                    return True
            except grpc.RpcError:
                pass  # not yet
            time.sleep(0.5)
    return False


def _classes(bundle: Path) -> int:
    return len((bundle / "labels.txt").read_text(encoding="utf-8").splitlines())


def _printed(python: Path, code: str) -> str:
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.splitlines()[-1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
