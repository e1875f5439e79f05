"""What TensorRT needs of the CUDA runtime: a GPU, a stream on it, and memory that grows."""

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from foveate_runtime.backends.base import Array, BackendError, gpu_index


def find_gpu(device: str) -> int:
    """Return the index of the GPU called `cuda` or `cuda:INDEX`.

    Raises BackendError where it is called otherwise, or there is none.
    """
    index = gpu_index(device)
    if index is None:
        raise BackendError(f"no device {device!r}; TensorRT runs on cuda or cuda:INDEX")
    count = int(_call("cudaGetDeviceCount"))
    if index >= count:
        raise BackendError(f"no device {device!r}; the number of GPUs is {count}")
    return index


def capability(gpu: int) -> str:
    """Return the compute capability of a GPU, such as 8.9."""
    attribute = _runtime().cudaDeviceAttr
    major = _call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, gpu)
    minor = _call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, gpu)
    return f"{major}.{minor}"


class Stream:
    """A stream on a GPU. Work put on it is done in order, and in its own time."""

    def __init__(self, gpu: int) -> None:
        self._gpu = gpu
        self.enter()
        self.handle = int(_call("cudaStreamCreate"))

    def enter(self) -> None:
        """Make the stream's GPU that of the calling thread."""
        _call("cudaSetDevice", self._gpu)

    def synchronize(self) -> None:
        """Wait for everything that was put on the stream."""
        _call("cudaStreamSynchronize", self.handle)

    def close(self) -> None:
        """Release the stream."""
        _call("cudaStreamDestroy", self.handle)


class Buffer:
    """Memory of a GPU. It grows to the largest size in use, and never shrinks."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._size = 0
        self.address = 0

    def reserve(self, size: int) -> None:
        """Make room for `size` bytes; what the buffer held is lost where it has to grow."""
        if size > self._size:
            self.close()
            self.address = int(_call("cudaMalloc", size))
            self._size = size

    def upload(self, array: Array) -> None:
        """Put a copy of a contiguous array into the buffer on the stream."""
        self.reserve(array.nbytes)
        kind = _runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
        source = array.ctypes.data
        _call("cudaMemcpyAsync", self.address, source, array.nbytes, kind, self._stream.handle)

    def download(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array that holds the contents as soon as the stream is synchronised."""
        array = np.empty(shape, dtype=dtype)
        kind = _runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
        target = array.ctypes.data
        _call("cudaMemcpyAsync", target, self.address, array.nbytes, kind, self._stream.handle)
        return array

    def close(self) -> None:
        """Release the memory."""
        if self._size:
            _call("cudaFree", self.address)
            self.address = self._size = 0


@cache
def _runtime() -> Any:
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendError(
            "CUDA's Python bindings cannot be imported: "
            'pip install "foveate-runtime[tensorrt]" or "foveate-runtime[tensorrt-rtx]"'
        ) from error


def _call(function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; raises BackendError where it fails."""
    runtime = _runtime()
    error, *results = getattr(runtime, function)(*arguments)
    if error != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(error)
        raise BackendError(f"the GPU cannot be used: {function}: {text.decode()}")
    return results[0] if results else None
