"""Several sessions with one copy of the convolutions' weights.

A session brings these into the order that its kernels want, and so each would
hold them once more; ONNX Runtime's own way of sharing them
(`PrepackedWeightsContainer`) is not in its interface for Python. But it can write
the graph to a file as it has optimised it, where they stand in that order, and a
session of that file takes what `SessionOptions.add_initializer` gives it in their
place. The weights of matrices are not shared: every session packs them for itself and
then releases the graph's, which sharing would keep.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from foveate_runtime.backends.onnxruntime.pruning import OnnxFile

_CONVOLUTION_DIMENSIONS = 4

_ALIGNMENT = 64
"""In bytes, as ONNX Runtime's own memory: a vector of the processor's, and a line of its caches."""


class SharedWeights:
    """The weights of all sessions of one variant, which it must outlive."""

    def __init__(self) -> None:
        self._values: dict[tuple[bytes, tuple[int, ...]], onnxruntime.OrtValue] = {}

    def adopt(self, graph: Path) -> dict[str, onnxruntime.OrtValue]:
        """Return the weights of an optimised graph, by name: those that are there already as such.

        Raises OSError and ValueError where `graph` is no ONNX file.
        """
        return {
            name: self._adopt(weights)
            for name, weights in OnnxFile(graph).arrays()
            if weights.ndim == _CONVOLUTION_DIMENSIONS
        }

    def _adopt(self, weights: NDArray[np.float32]) -> onnxruntime.OrtValue:
        key = (sha256(weights.data).digest(), weights.shape)
        if key not in self._values:
            self._values[key] = onnxruntime.OrtValue.ortvalue_from_numpy(_aligned(weights))
        return self._values[key]


def _aligned(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a copy that begins at a multiple of `_ALIGNMENT`."""
    memory = np.empty(weights.nbytes + _ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + weights.nbytes].view(np.float32).reshape(weights.shape)
    copy[:] = weights
    return copy


@contextmanager
def nameless_file() -> Iterator[Path]:
    """Make a file that is in no folder, and return where this process can open it.

    In memory where the system has such files: a server may have no folder to write to.
    """
    with os.fdopen(os.memfd_create("graph"), "w+b") if _IN_MEMORY else TemporaryFile() as file:
        yield Path(f"/dev/fd/{file.fileno()}")


_IN_MEMORY = hasattr(os, "memfd_create")
