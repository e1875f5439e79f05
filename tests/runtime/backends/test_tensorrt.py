# ruff: noqa: N802, N815 - the names are CUDA's
"""An engine is opened only where it fits, and run as the graph contract says.

No GPU is needed: ONNX Runtime stands in for TensorRT's runtime, over memory of
the process in the place of a GPU's. An engine is an ONNX file to it, outputs are
found and written by their addresses, and every address is checked.
"""

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorrt_rtx
from cuda.bindings import runtime

from foveate_runtime.backends.base import BackendError, Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.backends.tensorrt import cuda, flavour
from foveate_runtime.bundle.bundle import Bundle
from foveate_serve.repository.warmup import warm_up

VERSION = "11.0.0"
OUTPUTS = ("logits", "cam.cam", "features.planes")


@dataclass
class Machine:
    """The stand-in's GPU: its memory by address, and what was opened and run."""

    memory: dict[int, Any] = field(default_factory=dict)
    streams: int = 0
    opened: int = 0
    runs: list[tuple[tuple[str, ...], int]] = field(default_factory=list)
    pending: list[Callable[[], object]] = field(default_factory=list)

    def array(self, address: int, size: int) -> Any:
        """Return `size` bytes at `address`, which must be allocated."""
        for start, memory in self.memory.items():
            if start <= address and address + size <= start + len(memory):
                return (ctypes.c_char * size).from_address(address)
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")


class CudaRuntime:
    """Stands in for cuda.bindings.runtime. Work on a stream is done when it is waited for."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor=8, cudaDevAttrComputeCapabilityMinor=9
    )

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, 1

    def cudaSetDevice(self, _: int) -> tuple[int]:
        return (0,)

    def cudaDeviceGetAttribute(self, attribute: int, _: int) -> tuple[int, int]:
        return 0, attribute

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return 0, {2: b"out of memory"}[error]

    def cudaStreamCreate(self) -> tuple[int, int]:
        self._machine.streams += 1
        return 0, 77

    def cudaStreamDestroy(self, _: int) -> tuple[int]:
        self._machine.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, _: int) -> tuple[int]:
        for work in self._machine.pending:
            work()
        self._machine.pending.clear()
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        if size > 1 << 20:
            return 2, 0
        memory = ctypes.create_string_buffer(size)
        self._machine.memory[ctypes.addressof(memory)] = memory
        return 0, ctypes.addressof(memory)

    def cudaFree(self, address: int) -> tuple[int]:
        del self._machine.memory[address]
        return (0,)

    def cudaMemcpyAsync(
        self, target: int, source: int, size: int, kind: int, stream: int
    ) -> tuple[int]:
        assert stream == 77
        self._machine.array(target if kind == 1 else source, size)
        self._machine.pending.append(lambda: ctypes.memmove(target, source, size))
        return (0,)


class ILogger:
    ERROR, INTERNAL_ERROR = "error", "internal error"


class Runtime:
    machine: Machine

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> "ICudaEngine":
        self.machine.opened += 1
        return ICudaEngine(self.machine, onnxruntime.InferenceSession(data))


class ICudaEngine:
    def __init__(self, machine: Machine, session: onnxruntime.InferenceSession) -> None:
        self._machine = machine
        self._session = session
        self._inputs = [node.name for node in session.get_inputs()]
        self._outputs = [node.name for node in session.get_outputs()]

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self._inputs else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return "float" if name in self._outputs else "other"

    def create_execution_context(self) -> "IExecutionContext":
        return IExecutionContext(self._machine, self._session)


class IExecutionContext:
    def __init__(self, machine: Machine, session: onnxruntime.InferenceSession) -> None:
        self._machine = machine
        self._session = session
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name == "class_ids" and shape[1] > 4:
            return False
        self._shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        images, classes = self._shapes["class_ids"]
        return {
            "logits": (images, 3),
            "cam.cam": (images, classes, 8, 8),
            "features.planes": (images, 3, 8, 8),
        }[name]

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        names = tuple(node.name for node in self._session.get_outputs())
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        self._machine.runs.append((names, shapes["image"][0]))
        self._machine.pending.append(lambda: self._execute(names, addresses, shapes))
        return True

    def _execute(
        self, names: tuple[str, ...], addresses: dict[str, int], shapes: dict[str, Any]
    ) -> None:
        feed = {}
        for name, dtype in (("image", np.uint8), ("class_ids", np.int64)):
            size = int(np.prod(shapes[name])) * np.dtype(dtype).itemsize
            memory = self._machine.array(addresses[name], size)
            feed[name] = np.frombuffer(memory, dtype).reshape(shapes[name])
        for name, result in zip(names, self._session.run(names, feed), strict=True):
            data = result.tobytes()
            self._machine.array(addresses[name], len(data))[:] = data


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Put the stand-in in the place of TensorRT and CUDA."""
    machine = Machine()
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    vars(module).update(
        __version__=VERSION,
        ILogger=ILogger,
        Runtime=type("Runtime", (Runtime,), {"machine": machine}),
        TensorIOMode=SimpleNamespace(OUTPUT="output"),
        nptype={"float": np.float32, "other": np.int64}.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", CudaRuntime(machine))
    caches = (flavour.load_library, cuda._runtime)
    for cached in caches:
        cached.cache_clear()
    yield machine
    for cached in caches:
        cached.cache_clear()


def add_engine(path: Path, kind: str, returned: tuple[str, ...], **changes: object) -> Path:
    """Add an engine of the stand-in to a bundle, with a sidecar that is right but for `changes`."""
    model = onnx.load(path / "model.onnx")
    kept = [output for output in model.graph.output if output.name in returned]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    engine = path / "engines" / f"fp32.{kind}.tensorrt.sm89.engine"
    engine.parent.mkdir(exist_ok=True)
    engine.write_bytes(model.SerializeToString())
    sidecar = {
        "flavour": "tensorrt",
        "version": VERSION,
        "compute_capabilities": ["8.9"],
        "variant": "fp32",
        "onnx_sha256": hashlib.sha256((path / "model.onnx").read_bytes()).hexdigest(),
        "kind": kind,
        "outputs": returned,
        "batch": {"minimum": 1, "optimum": 2, "maximum": 3},
        "classes": {"minimum": 1, "optimum": 2, "maximum": 4},
        "engine_sha256": hashlib.sha256(engine.read_bytes()).hexdigest(),
        "engine_size": engine.stat().st_size,
    }
    engine.with_suffix(".json").write_text(json.dumps(sidecar | changes))
    list_files(path)
    return engine


def list_files(path: Path) -> None:
    """Write the digests of the bundle's files into its manifest."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {
        file.relative_to(path).as_posix(): {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "size": file.stat().st_size,
        }
        for file in path.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def path(write_bundle: Callable[[], Path]) -> Path:
    """A bundle with an engine of either kind."""
    path = write_bundle()
    add_engine(path, "classify", ("logits",))
    add_engine(path, "explain", OUTPUTS)
    return path


def open_runner(path: Path, device: str = "cuda") -> Runner:
    return create_runner(Bundle.open(path), backend="tensorrt", device=device)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def test_answers_as_the_graph_does(machine: Machine, path: Path) -> None:
    inputs = {"image": pictures(2), "class_ids": np.array([[-1, 2], [0, -3]])}
    with open_runner(path) as runner, create_runner(Bundle.open(path)) as graph:
        results, expected = (r.run(inputs, OUTPUTS) for r in (runner, graph))
        # Nothing of one run is left in the next, which is smaller.
        inputs = {"image": pictures(3)[2:], "class_ids": np.array([[1]])}
        again, expected_again = (r.run(inputs, OUTPUTS) for r in (runner, graph))
    assert (runner.backend, runner.device, runner.variant) == ("tensorrt", "cuda", "fp32")
    for name in OUTPUTS:
        np.testing.assert_allclose(results[name], expected[name], atol=1e-6)
        np.testing.assert_allclose(again[name], expected_again[name], atol=1e-6)


def test_the_time_of_building_is_that_of_the_engines_opened(
    machine: Machine, write_bundle: Callable[[], Path]
) -> None:
    path = write_bundle()
    add_engine(path, "classify", ("logits",), build_seconds=2.5)
    add_engine(path, "explain", OUTPUTS, build_seconds=4.0)
    with open_runner(path) as runner:
        assert runner.build_seconds is None
        runner.run({"image": pictures(1)}, ["logits"])
        assert runner.build_seconds == 2.5
        runner.run({"image": pictures(1)}, ["features.planes"])
        assert runner.build_seconds == 6.5


def test_the_engine_with_the_fewest_outputs_answers(machine: Machine, path: Path) -> None:
    with open_runner(path) as runner:
        assert machine.opened == 0
        assert list(runner.run({"image": pictures(1)}, ["logits"])) == ["logits"]
        assert machine.opened == 1
        runner.run({"image": pictures(1)}, ["features.planes"])
        runner.run({"image": pictures(1), "class_ids": np.array([[0]])}, ["cam.cam", "logits"])
        assert machine.opened == 2
    assert machine.runs == [(("logits",), 1), (OUTPUTS, 1), (OUTPUTS, 1)]


def test_a_batch_above_the_largest_runs_in_parts(machine: Machine, path: Path) -> None:
    inputs = {"image": pictures(7), "class_ids": np.arange(14).reshape(7, 2) % 3}
    with open_runner(path) as runner, create_runner(Bundle.open(path)) as graph:
        results, expected = (r.run(inputs, ["cam.cam", "logits"]) for r in (runner, graph))
    assert [batch for _, batch in machine.runs] == [3, 3, 1]
    for name in results:
        np.testing.assert_allclose(results[name], expected[name], atol=1e-6)


def test_gives_back_all_memory(machine: Machine, path: Path) -> None:
    runner = open_runner(path)
    warm_up(runner, [1])
    held = len(machine.memory)
    warm_up(runner, [1])
    assert (len(machine.memory), machine.streams) == (held, 1)
    runner.close()
    assert (machine.memory, machine.streams) == ({}, 0)


def test_more_classes_than_the_engine_takes(machine: Machine, path: Path) -> None:
    inputs = {"image": pictures(1), "class_ids": np.zeros((1, 5), dtype=np.int64)}
    with (
        open_runner(path) as runner,
        pytest.raises(BackendError, match=r"does not take class_ids as \[1, 5\]"),
    ):
        runner.run(inputs, ["cam.cam"])


def test_an_error_of_cuda_is_a_backend_error(
    machine: Machine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_runner(path) as runner:
        monkeypatch.setattr(CudaRuntime, "cudaMalloc", lambda *_: (2, 0))
        with pytest.raises(BackendError, match="cudaMalloc: out of memory"):
            runner.run({"image": pictures(1)}, ["logits"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "10.9.0"}, r"\.engine was built by version 10\.9\.0"),
        ({"compute_capabilities": ["8.6", "12.0"]}, r"is for compute capability 8\.6, 12\.0"),
        ({"onnx_sha256": "0" * 64}, "was built from another graph"),
        ({"engine_sha256": "0" * 64}, "is not the engine that its sidecar describes"),
        ({"engine_size": 1}, "is not the engine that its sidecar describes"),
        ({"flavour": "tensorrt_rtx"}, "the bundle has none"),
        ({"variant": "fp16"}, "the bundle has none"),
        ({"format": "foveate.engine/2"}, r"engines/fp32\.explain.*\.json: format"),
        ({"batch": {"minimum": 4, "optimum": 2, "maximum": 8}}, r"batch: .*does not rise"),
        ({"comment": "x" * (64 << 10)}, "larger than the limit of 65536 bytes"),
        ({"outputs": ["logits", "cam.cam"]}, r"returns logits, cam\.cam, features\.planes"),
    ],
)
def test_an_engine_that_does_not_fit_is_not_opened(
    machine: Machine,
    write_bundle: Callable[[], Path],
    changes: dict[str, object],
    message: str,
) -> None:
    path = write_bundle()
    add_engine(path, "explain", OUTPUTS, **changes)
    with pytest.raises(BackendError, match=message):
        open_runner(path)
    assert (machine.opened, machine.streams) == (0, 0)


def test_a_sidecar_without_its_engine(machine: Machine, write_bundle: Callable[[], Path]) -> None:
    path = write_bundle()
    add_engine(path, "explain", OUTPUTS).unlink()
    list_files(path)
    with pytest.raises(BackendError, match=r"explain\.tensorrt\.sm89\.engine is not listed"):
        open_runner(path)


def test_an_engine_altered_after_the_bundle_was_checked_is_not_opened(
    machine: Machine, path: Path
) -> None:
    with open_runner(path) as runner:
        engine = path / "engines" / "fp32.classify.tensorrt.sm89.engine"
        engine.write_bytes(engine.read_bytes() + b"\0")
        with pytest.raises(BackendError, match="its SHA-256 is not the sidecar's"):
            runner.run({"image": pictures(1)}, ["logits"])
    assert machine.opened == 0


@pytest.mark.parametrize("device", ["cpu", "cuda:1", "cuda:x"])
def test_unknown_devices_are_refused(machine: Machine, path: Path, device: str) -> None:
    with pytest.raises(BackendError, match=f"no device '{device}'"):
        open_runner(path, device)


def test_the_stand_in_has_the_interface_of_what_it_stands_in_for() -> None:
    pairs = [(CudaRuntime, runtime)]
    pairs += [(c, getattr(tensorrt_rtx, c.__name__)) for c in (Runtime, ICudaEngine, ILogger)]
    pairs += [(IExecutionContext, tensorrt_rtx.IExecutionContext)]
    for stand_in, real in pairs:
        own = {"machine"} if stand_in is Runtime else set()
        names = {name for name in vars(stand_in) if not name.startswith("_")} - own
        assert names
        assert {name for name in names if not hasattr(real, name)} == set()
    assert hasattr(tensorrt_rtx.TensorIOMode, "OUTPUT")
    assert tensorrt_rtx.nptype(tensorrt_rtx.float32) is np.float32


def test_without_a_gpu_the_real_runner_says_so(write_bundle: Callable[[], Path]) -> None:
    code = (
        "import sys, pathlib\n"
        "from foveate_runtime.backends.registry import create_runner\n"
        "from foveate_runtime.bundle.bundle import Bundle\n"
        "bundle = Bundle.open(pathlib.Path(sys.argv[1]))\n"
        "create_runner(bundle, backend='tensorrt_rtx', device='cuda')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, write_bundle()],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "BackendError: the GPU cannot be used: cudaGetDeviceCount: " in last


def test_a_library_that_is_missing_names_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    flavour.load_library.cache_clear()
    with pytest.raises(BackendError, match=r'pip install "foveate-runtime\[tensorrt-rtx\]"'):
        flavour.load_library(flavour.TENSORRT_RTX)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    cuda._runtime.cache_clear()
    with pytest.raises(BackendError, match=r'pip install "foveate-runtime\[tensorrt\]"'):
        cuda.find_gpu("cuda")
