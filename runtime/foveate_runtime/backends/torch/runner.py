"""Runs graphs in torch."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import ClassVar

import torch

from foveate_runtime.backends.base import Array, BackendError, OperatorTime, Runner, gpu_index
from foveate_runtime.backends.torch.graph import Program, TorchGraph
from foveate_runtime.backends.torch.profiling import Stopwatch
from foveate_runtime.bundle.bundle import Bundle

PROGRAMS = 16
"""Sets of outputs whose programs are kept; a program is a list of nodes, without weights."""


class TorchRunner(Runner):
    """A bundle's ONNX graph, run by torch node by node. Only those nodes run that are needed.

    For graphs that the other engines cannot run, and to compare them with: nothing is
    fused. torch has one number of threads for the whole process: that of the runner
    opened last.
    """

    backend: ClassVar[str] = "torch"

    def __init__(self, bundle: Bundle, *, variant: str, device: str, threads: int) -> None:
        super().__init__(bundle, variant=variant, device=device, threads=threads)
        self._device = _find_device(device)
        if threads:
            torch.set_num_threads(threads)
        try:
            self._graph = TorchGraph(bundle.file(variant), self._device)
        except BackendError as error:
            raise BackendError(f"torch cannot load the variant {variant!r}: {error}") from error
        self._require_names(self._graph.inputs, self._graph.outputs)
        self._program = lru_cache(PROGRAMS)(self._graph.program)

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        with torch.inference_mode():
            results = self._execute(self._tensors(inputs), outputs)
            return {name: results[name].cpu().contiguous().numpy() for name in outputs}

    def _execute(
        self, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str]
    ) -> Mapping[str, torch.Tensor]:
        """Run the graph on its device; raises BackendError."""
        program: Program = self._program(tuple(outputs))
        return self._graph.run(program, inputs, outputs)

    def _profile(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], warm_up: int, runs: int
    ) -> list[OperatorTime]:
        program = self._program(tuple(outputs))
        watch = Stopwatch(program, self._device)
        with torch.inference_mode():
            feed = self._tensors(inputs)
            for _ in range(warm_up):
                self._graph.run(program, feed, outputs)
            for _ in range(runs):
                self._graph.run(watch.program, feed, outputs)
        return watch.times()

    def _tensors(self, inputs: Mapping[str, Array]) -> dict[str, torch.Tensor]:
        # The caller's array may be read-only, which torch's tensors cannot be.
        return {name: torch.tensor(array, device=self._device) for name, array in inputs.items()}

    def close(self) -> None:
        """Release the graph and its weights."""
        self._program.cache_clear()
        del self._program, self._graph


def _find_device(name: str) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    index = gpu_index(name)
    if index is None:
        raise BackendError(f"no device {name!r}; torch runs on cpu, cuda or cuda:INDEX")
    count = torch.cuda.device_count()
    if index >= count:
        raise BackendError(f"no device {name!r}; the number of GPUs that torch sees is {count}")
    return torch.device("cuda", index)
