"""Prometheus metrics of requests, batches, models and calls, made of the statistics."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

from google.rpc.code_pb2 import Code
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from foveate_serve.figures import Figures, Key, read_figures
from foveate_serve.observe.known_versions import KnownVersions
from foveate_serve.observe.triton import TritonNames
from foveate_serve.repository.loaded import LoadedModel
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import State
from foveate_serve.rpc.errors import CODES
from foveate_serve.rpc.interceptor import CallRecord
from foveate_serve.statistics import OK, PICTURES, SECONDS, UNEXPECTED, Statistics

Values: TypeAlias = Sequence[float]
Source: TypeAlias = Callable[[], Iterable[tuple[bool, Iterable[tuple[Key, Values]]]]]
"""Returns the figures of each process, and whether it still runs."""

_VERSION = ("model", "version")
_CODES: Mapping[str, str] = {
    OK: OK,
    UNEXPECTED: "INTERNAL",
    asyncio.CancelledError.__name__: "CANCELLED",
    **{kind.__name__: Code.Name(code) for kind, code in CODES.items()},
}
"""The canonical code of each outcome of a request."""


@dataclass(frozen=True)
class _Metric:
    """A metric: the figures that it is made of, and how.

    `place` is the number among those of a figure, `bounds` those of a histogram.
    A gauge is the sum over the processes that still run, or the largest value.
    """

    name: str
    text: str
    figure: str
    kind: str
    labels: tuple[str, ...] = _VERSION
    place: int = 0
    bounds: tuple[float, ...] = ()
    largest: bool = False

    def family(self, figures: Mapping[Key, Values]) -> Metric:
        """Return the samples of the metric; nothing is counted of what it does not show."""
        family = Metric(self.name, self.text, self.kind)
        for (name, values), numbers in figures.items():
            if name != self.figure:
                continue
            labels = dict(zip(self.labels, values, strict=True))
            if self.bounds:
                self._add_histogram(family, labels, numbers)
            elif self.kind == "gauge":
                family.add_sample(self.name, labels, numbers[self.place])
            elif numbers[self.place]:
                family.add_sample(f"{self.name}_total", labels, numbers[self.place])
        return family

    def _add_histogram(self, family: Metric, labels: dict[str, str], numbers: Values) -> None:
        *counts, total = numbers
        ends = [*map(floatToGoString, self.bounds), "+Inf"]
        buckets = list(zip(ends, accumulate(counts), strict=True))
        if count := buckets[-1][1]:
            for end, below in buckets:
                family.add_sample(f"{self.name}_bucket", {**labels, "le": end}, below)
            family.add_sample(f"{self.name}_count", labels, count)
            family.add_sample(f"{self.name}_sum", labels, total)


def _counter(figure: str, name: str, text: str, *labels: str, place: int = 0) -> _Metric:
    return _Metric(
        f"foveate_{name}", text, figure, "counter", labels=(*_VERSION, *labels), place=place
    )


def _histogram(figure: str, name: str, text: str, bounds: tuple[float, ...] = SECONDS) -> _Metric:
    return _Metric(f"foveate_{name}", text, figure, "histogram", bounds=bounds)


def _gauge(figure: str, name: str, text: str, *, largest: bool = False) -> _Metric:
    return _Metric(f"foveate_{name}", text, figure, "gauge", largest=largest)


METRICS = (
    _counter("requests", "requests", "Classified or refused pictures, by canonical code.", "code"),
    _gauge("in_flight", "requests_in_flight", "Pictures that are being classified."),
    _gauge("waiting", "requests_waiting", "Pictures in the queue."),
    _histogram("request", "request_seconds", "From a picture's arrival to its answer."),
    _histogram("decode", "decode_seconds", "Decoding, resizing and cropping a picture."),
    _histogram("queue", "queue_seconds", "In the queue."),
    _histogram("infer", "infer_seconds", "The run of the picture's batch."),
    _histogram(
        "encode", "encode_seconds", "Ranking the classes and drawing the maps of a picture."
    ),
    _histogram("batch_size", "batch_size", "Pictures in a batch.", PICTURES),
    _histogram("batch_seconds", "batch_seconds", "Runs of the engine."),
    _counter(
        "busy",
        "engine_busy_seconds",
        "Seconds that a lane of an engine was busy; its rate is the utilisation.",
        "lane",
    ),
    _counter("cache_hits", "cache_hits", "Answers from the cache."),
    _counter("cache_misses", "cache_misses", "Lookups without an answer."),
    _counter("cache_hits", "cache_hits_seconds", "Seconds of the lookups with an answer.", place=1),
    _counter(
        "cache_misses", "cache_misses_seconds", "Seconds of the lookups without an answer.", place=1
    ),
    _counter(
        "joined",
        "requests_joined",
        "Pictures that shared the run of an identical request in flight.",
    ),
    _gauge("load_seconds", "model_load_seconds", "The last load of a version.", largest=True),
    _gauge("ready", "model_ready", "Processes in which a version serves."),
    # A latency objective may change these at any time.
    _gauge("instances", "instances", "Instances of a version, in each process.", largest=True),
    _gauge("max_batch", "batch_limit", "The most pictures in a batch.", largest=True),
    _gauge(
        "max_delay",
        "batch_delay_limit_seconds",
        "The longest wait for a batch to fill.",
        largest=True,
    ),
    _gauge("max_queue", "queue_limit", "The most pictures in the queue.", largest=True),
    _Metric(
        "foveate_drift_psi",
        "How far the last answers lie from those to the calibration pictures.",
        "drift",
        "gauge",
        labels=(*_VERSION, "figure"),
        largest=True,
    ),
    _Metric(
        "foveate_calls",
        "gRPC calls, by canonical code.",
        "calls",
        "counter",
        labels=("method", "code"),
    ),
    _Metric(
        "foveate_calls_in_flight",
        "gRPC calls in flight.",
        "calls_in_flight",
        "gauge",
        labels=("method",),
    ),
)
_GAUGES = {metric.figure: metric for metric in METRICS if metric.kind == "gauge"}


class FiguresCollector(Collector):
    """The metrics of the figures that `source` returns, added over the processes."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Return the metrics as they are now."""
        figures: dict[Key, list[float]] = {}
        for running, found in self._source():
            for (name, labels), numbers in found:
                gauge = _GAUGES.get(name)
                if gauge is not None and not running:
                    continue
                if name == "requests":
                    # Errors of several kinds have the same code.
                    labels = (*labels[:2], _CODES[labels[2]])  # noqa: PLW2901
                known = figures.get((name, labels))
                if known is None:
                    figures[name, labels] = list(numbers)
                else:
                    add = max if gauge is not None and gauge.largest else _sum
                    known[:] = map(add, known, numbers)
        for metric in METRICS:
            yield metric.family(figures)


class Metrics:
    """The metrics of the process, in the registry `registry`.

    Times are histograms: these can be summed over servers before quantiles are
    computed. The label `model` holds only names of bundles, and is empty for a request
    whose model was not found. Versions that are gone are removed; see `KnownVersions`.
    """

    def __init__(self, statistics: Statistics) -> None:
        self.registry = CollectorRegistry()
        self._statistics = statistics
        collector = FiguresCollector(lambda: [(True, statistics.figures.items())])
        self._known_versions = KnownVersions(collector)
        self._drifting: dict[tuple[str, str], dict[str, float]] = {}
        self.registry.register(TritonNames(self._known_versions))
        ProcessCollector(registry=self.registry)

    def call(self, call: CallRecord) -> AbstractContextManager[None]:
        """Count a gRPC call: a CallObserver of the server."""
        return _CountedCall(self._statistics.figures, call)

    def sample(self, repository: Repository) -> None:
        """Set the gauges that are read, not counted: readiness, queue lengths, batch policies."""
        states = {
            (model.name, str(status.version)): status.state
            for model in repository.models()
            for status in model.versions
        }
        serving = {(loaded.name, loaded.version): loaded for loaded in repository.serving()}
        for version, state in states.items():
            self._statistics.set("ready", *version, state is State.READY)
            numbers = _numbers_of(serving[version]) if version in serving else (0.0,) * 5
            for name, value in zip(_SAMPLED, numbers, strict=True):
                self._statistics.set(name, *version, value)
        for version in states:
            watch = serving[version].drift if version in serving else None
            drift = {} if watch is None else watch.indices()
            # A version that was unloaded has not drifted: an alert must end.
            for figure in drift or self._drifting.pop(version, {}):
                self._statistics.set("drift", *version, drift.get(figure, 0.0), figure)
            if drift:
                self._drifting[version] = drift
        for model, number in self._known_versions.update(states):
            self._statistics.forget(model, number)


_SAMPLED = ("waiting", "instances", "max_batch", "max_delay", "max_queue")


def _numbers_of(loaded: LoadedModel) -> tuple[float, ...]:
    batcher, policy = loaded.batcher, loaded.batcher.policy
    return (
        batcher.waiting,
        len(loaded.runners),
        policy.max_batch,
        policy.max_delay,
        policy.max_queue,
    )


class _CountedCall(AbstractContextManager[None]):
    """Counts a call in flight until its block ends, and then by its code."""

    def __init__(self, figures: Figures, call: CallRecord) -> None:
        self._figures, self._call = figures, call
        self._in_flight = figures.slots("calls_in_flight", (call.method,))

    def __enter__(self) -> None:
        self._in_flight[0] += 1

    def __exit__(self, *_: object) -> None:
        self._in_flight[0] -= 1
        call = self._call
        self._figures.slots("calls", (call.method, call.code.name))[0] += 1


def metrics_of_workers(folder: Path, live: Callable[[], set[int]]) -> FiguresCollector:
    """Return the metrics of the workers that count in a folder, those that have ended included.

    `live` returns the numbers of the processes that still run.
    """

    def read() -> Iterator[tuple[bool, Iterable[tuple[Key, Values]]]]:
        alive = live()
        for process, figures in read_figures(folder):
            yield process in alive, figures

    return FiguresCollector(read)


def _sum(one: float, other: float) -> float:
    return one + other
