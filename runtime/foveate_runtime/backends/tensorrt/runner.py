"""Runs a bundle's engines in TensorRT or TensorRT-RTX."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from foveate_runtime.backends.base import Array, BackendError, Runner, with_classes
from foveate_runtime.backends.tensorrt.cuda import Buffer, Stream, capability, find_gpu
from foveate_runtime.backends.tensorrt.flavour import (
    TENSORRT,
    TENSORRT_RTX,
    Flavour,
    Library,
    load_library,
)
from foveate_runtime.backends.tensorrt.sidecar import EngineFile, find_engines
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import CLASS_IDS_INPUT, IMAGE_INPUT


class _EngineRunner(Runner):
    """Engines that were built from the variant's graph.

    Of the engines that return the outputs, the one with the fewest others runs; it
    is opened at its first use. A batch above the
    largest that the engine takes is run in parts.
    """

    flavour: ClassVar[Flavour]

    def __init__(self, bundle: Bundle, *, variant: str, device: str, threads: int) -> None:
        super().__init__(bundle, variant=variant, device=device, threads=threads)
        self._library = load_library(self.flavour)
        gpu = find_gpu(device)
        self._files = find_engines(
            bundle,
            variant=variant,
            flavour=self.flavour.name,
            version=self._library.version,
            capability=capability(gpu),
        )
        self._choose(list(self.outputs))
        self._stream = Stream(gpu)
        self._opened: dict[str, _Engine] = {}
        self._lock = threading.Lock()

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        file = self._choose(outputs)
        # Every input must be fed, also one that none of these outputs needs.
        feed = with_classes(inputs) if CLASS_IDS_INPUT in self.inputs else dict(inputs)
        most = file.sidecar.batch.maximum
        # An execution context, and its buffers, serve one batch at a time.
        with self._lock:
            self._stream.enter()
            engine = self._open(file)
            parts = [
                engine.run(
                    {name: array[start : start + most] for name, array in feed.items()}, outputs
                )
                for start in range(0, len(feed[IMAGE_INPUT]), most)
            ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def close(self) -> None:
        """Release the engines, their memory and the stream."""
        self._stream.enter()
        for engine in self._opened.values():
            engine.close()
        self._opened.clear()
        self._stream.close()

    def _open(self, file: EngineFile) -> "_Engine":
        engine = self._opened.get(file.path)
        if engine is None:
            engine = self._opened[file.path] = _Engine(self._library, self._stream, file.read())
            if file.sidecar.build_seconds is not None:
                self.build_seconds = (self.build_seconds or 0.0) + file.sidecar.build_seconds
        return engine

    def _choose(self, outputs: Sequence[str]) -> EngineFile:
        for file in self._files:
            if set(outputs) <= set(file.sidecar.outputs):
                return file
        raise BackendError(
            f"no engine of the variant {self.variant!r} returns {', '.join(outputs)} "
            "(`foveate engines` builds them)"
        )


class TensorRTRunner(_EngineRunner):
    """TensorRT's engines."""

    backend: ClassVar[str] = TENSORRT.name
    flavour: ClassVar[Flavour] = TENSORRT


class TensorRTRTXRunner(_EngineRunner):
    """TensorRT-RTX's engines."""

    backend: ClassVar[str] = TENSORRT_RTX.name
    flavour: ClassVar[Flavour] = TENSORRT_RTX


class _Engine:
    """A deserialised engine, its execution context, and a buffer a tensor."""

    def __init__(self, library: Library, stream: Stream, data: bytes) -> None:
        trt = library.module
        title = library.flavour.title
        self._library = library
        self._stream = stream
        # The runtime must outlive its engines.
        self._runtime = trt.Runtime(library.logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise BackendError(f"{title} cannot open the engine") from library.cause()
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(f"{title} cannot prepare the engine") from library.cause()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._buffers = {name: Buffer(stream) for name in names}
        self._dtypes: dict[str, np.dtype[Any]] = {
            name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            for name in names
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT
        }

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run one batch and return the outputs named."""
        # Kept until the stream is synchronised: the copies are made in its time.
        feed = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in feed.items():
            if not self._context.set_input_shape(name, array.shape):
                raise BackendError(f"the engine does not take {name} as {list(array.shape)}")
            self._buffers[name].upload(array)
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in self._dtypes}
        # The other outputs are computed as well, and need memory.
        for name, dtype in self._dtypes.items():
            self._buffers[name].reserve(dtype.itemsize * int(np.prod(shapes[name])))
        for name, buffer in self._buffers.items():
            self._context.set_tensor_address(name, buffer.address)
        if not self._context.execute_async_v3(self._stream.handle):
            raise BackendError(
                f"{self._library.flavour.title} failed to run the engine"
            ) from self._library.cause()
        results = {
            name: self._buffers[name].download(shapes[name], self._dtypes[name]) for name in outputs
        }
        self._stream.synchronize()
        return results

    def close(self) -> None:
        """Release the buffers, the context and the engine, in this order."""
        for buffer in self._buffers.values():
            buffer.close()
        del self._context, self._engine, self._runtime
