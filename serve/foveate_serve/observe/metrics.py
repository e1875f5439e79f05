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
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import State
from foveate_serve.rpc.errors import CODES
from foveate_serve.rpc.interceptor import CallRecord
from foveate_serve.statistics import OK, PICTURES, SECONDS, UNEXPECTED, Statistics

Values: TypeAlias = Sequence[float]
Source: TypeAlias = Callable[[], Iterable[tuple[bool, Iterable[tuple[Key, Values]]]]]
"""Returns the figures of each process, and whether it lives."""

_VERSION = ("model", "version")
_CODES: Mapping[str, str] = {
    OK: OK,
    UNEXPECTED: "INTERNAL",
    asyncio.CancelledError.__name__: "CANCELLED",
    **{kind.__name__: Code.Name(code) for kind, code in CODES.items()},
}
"""The canonical code of each outcome of a request."""


@dataclass(frozen=True, kw_only=True)
class _Metric:
    """A metric: the figures that it is made of, and how.

    `place` is the number among those of a figure, `bounds` those of a histogram.
    A gauge is the sum over the processes that live, or the largest value.
    """

    name: str
    text: str
    figure: str
    kind: str = "counter"
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


def _gauge(name: str, text: str, figure: str = "", **options: object) -> _Metric:
    values: dict[str, object] = {"figure": figure or name, "kind": "gauge", **options}
    return _Metric(name=name, text=text, **values)  # type: ignore[arg-type]


def _histogram(name: str, text: str, bounds: tuple[float, ...] = SECONDS) -> _Metric:
    figure = name.removesuffix("_seconds") if name != "batch_seconds" else name
    return _Metric(
        name=f"foveate_{name}", text=text, figure=figure, kind="histogram", bounds=bounds
    )


READY = "foveate_model_ready"
WAITING = "foveate_requests_waiting"
INSTANCES = "foveate_instances"
BATCH_LIMIT = "foveate_batch_limit"
DELAY_LIMIT = "foveate_batch_delay_limit_seconds"
QUEUE_LIMIT = "foveate_queue_limit"

METRICS = (
    _Metric(
        name="foveate_requests",
        text="Classified or refused pictures, by canonical code.",
        figure="requests",
        labels=(*_VERSION, "code"),
    ),
    _gauge("foveate_requests_in_flight", "Pictures that are being classified.", "in_flight"),
    _gauge(WAITING, "Pictures in the queue."),
    _histogram("request_seconds", "From a picture's arrival to its answer."),
    _histogram("decode_seconds", "Decoding, resizing and cropping a picture."),
    _histogram("queue_seconds", "In the queue."),
    _histogram("infer_seconds", "The run of the picture's batch."),
    _histogram("encode_seconds", "Ranking the classes and drawing the maps of a picture."),
    _histogram("batch_size", "Pictures in a batch.", PICTURES),
    _histogram("batch_seconds", "Runs of the engine."),
    _Metric(
        name="foveate_engine_busy_seconds",
        text="Seconds that a lane of an engine was busy; its rate is the utilisation.",
        figure="busy",
        labels=(*_VERSION, "lane"),
    ),
    _Metric(name="foveate_cache_hits", text="Answers from the cache.", figure="cache_hits"),
    _Metric(name="foveate_cache_misses", text="Lookups without an answer.", figure="cache_misses"),
    _Metric(
        name="foveate_cache_hits_seconds",
        text="Seconds of the lookups with an answer.",
        figure="cache_hits",
        place=1,
    ),
    _Metric(
        name="foveate_cache_misses_seconds",
        text="Seconds of the lookups without an answer.",
        figure="cache_misses",
        place=1,
    ),
    _Metric(
        name="foveate_requests_joined",
        text="Pictures that shared the run of an identical request in flight.",
        figure="joined",
    ),
    _gauge(
        "foveate_model_load_seconds",
        "The last load of a version.",
        "load_seconds",
        largest=True,
    ),
    _gauge(READY, "Processes in which a version serves."),
    # A latency objective may change these at any time.
    _gauge(INSTANCES, "Instances of a version, in each process.", largest=True),
    _gauge(BATCH_LIMIT, "The most pictures in a batch.", largest=True),
    _gauge(DELAY_LIMIT, "The longest wait for a batch to fill.", largest=True),
    _gauge(QUEUE_LIMIT, "The most pictures in the queue.", largest=True),
    _Metric(
        name="foveate_calls",
        text="gRPC calls, by canonical code.",
        figure="calls",
        labels=("method", "code"),
    ),
    _gauge(
        "foveate_calls_in_flight", "gRPC calls in flight.", "calls_in_flight", labels=("method",)
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
        for lives, found in self._source():
            for (name, labels), numbers in found:
                gauge = _GAUGES.get(name)
                if gauge is not None and not lives:
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
    whose model was not found. Versions that are gone are removed, as `KnownVersions`
    says.
    """

    def __init__(self, statistics: Statistics) -> None:
        self.registry = CollectorRegistry()
        self._statistics = statistics
        collector = FiguresCollector(lambda: [(True, statistics.figures.items())])
        self._known_versions = KnownVersions(collector)
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
            loaded = serving.get(version)
            self._statistics.set(READY, *version, state is State.READY)
            for name, value in (
                (WAITING, loaded and loaded.batcher.waiting),
                (INSTANCES, loaded and len(loaded.runners)),
                (BATCH_LIMIT, loaded and loaded.batcher.policy.max_batch),
                (DELAY_LIMIT, loaded and loaded.batcher.policy.max_delay),
                (QUEUE_LIMIT, loaded and loaded.batcher.policy.max_queue),
            ):
                self._statistics.set(name, *version, value or 0)
        for model, number in self._known_versions.update(states):
            self._statistics.forget(model, number)


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
    """Return the metrics of the workers that count in a folder, those that died included.

    `live` returns the numbers of the processes that have not.
    """

    def read() -> Iterator[tuple[bool, Iterable[tuple[Key, Values]]]]:
        alive = live()
        for process, figures in read_figures(folder):
            yield process in alive, figures

    return FiguresCollector(read)


def _sum(one: float, other: float) -> float:
    return one + other
