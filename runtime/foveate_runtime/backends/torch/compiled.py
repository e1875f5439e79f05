"""Runs graphs through torch.compile."""

import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from foveate_runtime.backends.base import BackendError, Runner
from foveate_runtime.backends.torch.runner import TorchRunner
from foveate_runtime.bundle.bundle import Bundle

COMPILED = 32
"""Compiled programs that are kept: one for each set of outputs and shape of the inputs."""

_Compiled = Callable[[dict[str, Tensor]], dict[str, Tensor]]
_Key = tuple[tuple[str, ...], tuple[tuple[str, torch.Size], ...]]


class TorchCompileRunner(TorchRunner):
    """A bundle's ONNX graph as torch's inductor compiles it, with the weights as constants.

    A program is for one set of outputs and one batch size, and is compiled at its
    first use, which takes seconds: for batches of a few fixed sizes.
    On a GPU it is replayed as a CUDA graph, on a CPU it is C++ and needs a
    compiler.
    """

    backend: ClassVar[str] = "torch_compile"

    # The compiled code no longer has the nodes of the graph.
    _profile = Runner._profile  # noqa: SLF001 - its own base

    def __init__(self, bundle: Bundle, *, variant: str, device: str, threads: int) -> None:
        super().__init__(bundle, variant=variant, device=device, threads=threads)
        on_gpu = self._device.type == "cuda"
        if not on_gpu:
            _require_compiler()
        self._options: dict[str, Any] = {"freezing": True, "triton.cudagraphs": on_gpu}
        self._compiled: OrderedDict[_Key, _Compiled] = OrderedDict()
        self._lock = threading.Lock()
        self.build_seconds = 0.0

    def close(self) -> None:
        """Release the programs, the graph and its weights."""
        self._compiled.clear()
        super().close()

    def _execute(
        self, inputs: Mapping[str, Tensor], outputs: Sequence[str]
    ) -> Mapping[str, Tensor]:
        feed = dict(inputs)
        # Of equal sets of outputs in another order the program is the same.
        names = tuple(sorted(outputs))
        key = (names, tuple((name, tensor.shape) for name, tensor in sorted(feed.items())))
        with self._lock:
            compiled = self._compiled.get(key)
            if compiled is None:
                return self._compile(key, feed)
            self._compiled.move_to_end(key)
            return compiled(feed)

    def _compile(self, key: _Key, feed: dict[str, Tensor]) -> Mapping[str, Tensor]:
        names, _ = key
        program = self._program(names)

        def run(feed: dict[str, Tensor]) -> dict[str, Tensor]:
            return self._graph.run(program, feed, names)

        started = time.perf_counter()
        # Traced with real tensors: what the graph computes of shapes becomes constants.
        traced = make_fx(run)(feed)
        compiled: Any = torch.compile(traced, dynamic=False, options=self._options)
        try:
            results: Mapping[str, Tensor] = compiled(feed)
        except RuntimeError as error:
            raise BackendError(f"torch cannot compile the variant {self.variant!r}") from error
        self.build_seconds = (self.build_seconds or 0.0) + time.perf_counter() - started
        while len(self._compiled) >= COMPILED:
            self._compiled.popitem(last=False)
        self._compiled[key] = compiled
        return results


def _require_compiler() -> None:
    """Raise BackendError where the compiler is missing that inductor calls."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise BackendError(
            f"torch.compile needs a C++ compiler, and there is no {compiler!r}: install one, or "
            "name it in the environment variable CXX"
        )
