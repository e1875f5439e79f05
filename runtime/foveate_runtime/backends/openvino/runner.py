"""Runs graphs in OpenVINO."""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import openvino

from foveate_runtime.backends.base import (
    Array,
    BackendError,
    OperatorTime,
    Runner,
    with_classes,
)
from foveate_runtime.backends.graphs import Graphs
from foveate_runtime.backends.integers import in_integers
from foveate_runtime.backends.openvino import profiling
from foveate_runtime.backends.openvino.core import CORE
from foveate_runtime.backends.openvino.properties import properties
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import CLASS_IDS_INPUT

_DEVICES = {"cpu": "CPU"}


@dataclass(frozen=True, kw_only=True)
class _Compiled:
    """A request to a compiled model, and whether this has the classes as an input."""

    request: Any
    takes_classes: bool


class OpenVinoRunner(Runner):
    """A graph in OpenVINO, compiled for sets of outputs.

    A compiled model computes all its outputs at every run, and an output in the
    middle of the network keeps layers from being merged, so a plain request
    must not pay for those of others.
    """

    backend: ClassVar[str] = "openvino"

    def __init__(self, bundle: Bundle, *, variant: str, device: str, threads: int) -> None:
        super().__init__(bundle, variant=variant, device=device, threads=threads)
        if device not in _DEVICES:
            raise BackendError(f"no device {device!r}; there are {', '.join(_DEVICES)}")
        self._properties = properties(
            threads, integers=in_integers(bundle.manifest.variant(variant))
        )
        try:
            self._graph = CORE.read_model(bundle.file(variant))
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot load the variant {variant!r}") from error
        self._results = {
            name: result for result in self._graph.get_results() for name in result.output(0).names
        }
        # A tensor has several names where OpenVINO has merged nodes that change nothing.
        parameters = [p.output(0).names for p in self._graph.get_parameters()]
        self._require_names(
            [min(names & self.inputs.keys() or names) for names in parameters], self._results
        )
        self._lock = threading.Lock()
        self._compiled = Graphs(self._compile, self.outputs)

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        compiled = self._compiled.get(outputs)
        feed = with_classes(inputs) if compiled.takes_classes else dict(inputs)
        with self._lock:
            try:
                results = compiled.request.infer(feed, share_inputs=True)
            except RuntimeError as error:
                raise BackendError("OpenVINO failed to run the graph") from error
        return {name: results[name] for name in outputs}

    def _profile(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], warm_up: int, runs: int
    ) -> list[OperatorTime]:
        request = self._compile(outputs, {"PERF_COUNT": True}).request
        feed = dict(inputs)

        def run(times: int) -> None:
            for _ in range(times):
                request.infer(feed, share_inputs=True)

        try:
            run(warm_up)
            before = profiling.read(request, runs=warm_up)
            run(runs)
        except RuntimeError as error:
            raise BackendError("OpenVINO failed to run the graph") from error
        after = profiling.read(request, runs=warm_up + runs)
        return profiling.subtract(after, before, warm_up=warm_up)

    def close(self) -> None:
        """Release the compiled models and their memory."""
        self._compiled.clear()
        self._results.clear()
        del self._graph

    def _compile(
        self, outputs: Collection[str], more: Mapping[str, Any] = MappingProxyType({})
    ) -> _Compiled:
        """Compile a part of the graph, with more properties than usual; raises BackendError."""
        results = [self._results[name] for name in outputs]
        parameters = self._needed(results)
        takes_classes = any(CLASS_IDS_INPUT in p.output(0).names for p in parameters)
        try:
            part = openvino.Model(results, parameters, self._graph.friendly_name)
            compiled = CORE.compile_model(part, _DEVICES[self.device], {**self._properties, **more})
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot compile the variant {self.variant!r}") from error
        return _Compiled(request=compiled.create_infer_request(), takes_classes=takes_classes)

    def _needed(self, results: Sequence[Any]) -> list[Any]:
        """Return the graph's inputs that `results` are computed from."""
        seen: set[str] = set()
        waiting = list(results)
        while waiting:
            node = waiting.pop()
            if node.get_name() not in seen:
                seen.add(node.get_name())
                waiting += [value.get_node() for value in node.input_values()]
        return [p for p in self._graph.get_parameters() if p.get_name() in seen]
