"""Runs graphs in OpenVINO."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, ClassVar

import openvino

from foveate_serve.backends.base import Array, BackendError, OperatorTime, Runner
from foveate_serve.backends.openvino import profiling
from foveate_serve.backends.openvino.properties import properties
from foveate_serve.bundle.bundle import Bundle
from foveate_serve.bundle.manifest import LOGITS_OUTPUT
from foveate_serve.instances import count_cores

COMPILED_MODELS = 6
"""Plain requests, those with maps and those with feature maps, alone and beside
others. Each holds the weights again, in the order that its kernels want."""

_DEVICES = {"cpu": "CPU"}


class _Compiled:
    """A compiled model, and as many requests to it as it runs at one time."""

    def __init__(self, model: Any, requests: int) -> None:
        self._free: SimpleQueue[Any] = SimpleQueue()
        for _ in range(requests):
            self._free.put(model.create_infer_request())

    @contextmanager
    def request(self) -> Iterator[Any]:
        """Give out a request, which one thread may use at a time."""
        request = self._free.get()
        try:
            yield request
        finally:
            self._free.put(request)


class OpenVinoRunner(Runner):
    """A graph in OpenVINO, compiled anew for each set of outputs when it is first wanted.

    A compiled model computes all its outputs at every run, and an output in the
    middle of the network keeps layers from being merged, so a plain request
    must not pay for those of others. The `COMPILED_MODELS` used last are kept.

    A run takes all threads when it is alone, and one stream of one thread when
    others run beside it, which do more together.
    """

    backend: ClassVar[str] = "openvino"

    def __init__(self, bundle: Bundle, *, variant: str, device: str, threads: int) -> None:
        super().__init__(bundle, variant=variant, device=device, threads=threads)
        if device not in _DEVICES:
            raise BackendError(f"no device {device!r}; there are {', '.join(_DEVICES)}")
        self._core = openvino.Core()
        self.lanes = threads or count_cores()
        try:
            self._graph = self._core.read_model(bundle.file(variant))
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot load the variant {variant!r}") from error
        self._results = {
            name: result for result in self._graph.get_results() for name in result.output(0).names
        }
        for name in self.outputs:
            if name not in self._results:
                raise BackendError(f"the graph has no output {name!r}, which the manifest names")
        self._models: OrderedDict[tuple[frozenset[str], int], _Compiled] = OrderedDict()
        self._lock = threading.Lock()
        self._model([LOGITS_OUTPUT], 1)

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        return self._infer(self._model(outputs, 1), inputs, outputs)

    def _run_beside(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        return self._infer(self._model(outputs, self.lanes), inputs, outputs)

    @staticmethod
    def _infer(
        model: _Compiled, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        with model.request() as request:
            try:
                results = request.infer(dict(inputs), share_inputs=True)
            except RuntimeError as error:
                raise BackendError("OpenVINO failed to run the graph") from error
        return {name: results[name] for name in outputs}

    def _profile(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], warm_up: int, runs: int
    ) -> list[OperatorTime]:
        request = self._compile(outputs, 1, {"PERF_COUNT": True}).create_infer_request()
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
        return profiling.subtract(profiling.read(request, runs=warm_up + runs), before)

    def close(self) -> None:
        """Release the compiled models and their memory."""
        self._models.clear()
        self._results.clear()
        del self._graph

    def _model(self, outputs: Sequence[str], streams: int) -> _Compiled:
        key = (frozenset(outputs), streams)
        with self._lock:
            if key in self._models:
                self._models.move_to_end(key)
                return self._models[key]
            while len(self._models) >= COMPILED_MODELS:
                self._models.popitem(last=False)
            self._models[key] = _Compiled(self._compile(outputs, streams, {}), streams)
            return self._models[key]

    def _compile(self, outputs: Sequence[str], streams: int, more: Mapping[str, Any]) -> Any:
        """Return a new compiled model of so many streams, with more properties than usual."""
        results = [self._results[name] for name in outputs]
        try:
            part = openvino.Model(results, self._needed(results), self._graph.friendly_name)
            return self._core.compile_model(
                part, _DEVICES[self.device], {**properties(self.threads, streams=streams), **more}
            )
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot compile the variant {self.variant!r}") from error

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
