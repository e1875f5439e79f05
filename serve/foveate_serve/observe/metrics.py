"""Prometheus metrics of requests, batches, models and calls."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

from google.rpc.code_pb2 import Code
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.process_collector import ProcessCollector

from foveate_serve.classification import Answer
from foveate_serve.errors import ServeError
from foveate_serve.observe.known_versions import KnownVersions
from foveate_serve.observe.triton import TritonNames
from foveate_serve.observer import BatchRun, Observer
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import State
from foveate_serve.rpc.errors import CODES
from foveate_serve.rpc.interceptor import CallRecord

# These would add a creation time to every counter, which Prometheus does not use.
disable_created_metrics()  # type: ignore[no-untyped-call]

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable with the folder in which several processes write their values."""

_MODEL = ("model", "version")

# From a tenth of a millisecond, which a stage of a small model takes, to ten seconds.
_SECONDS = (
    *(1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics(Observer):
    """The metrics of one process, in the registry `registry`.

    Times are histograms: these can be summed over servers before quantiles are
    computed. The label `model` holds only names of bundles, and is empty for a request
    whose model was not found. Versions that are gone are removed, as `KnownVersions`
    says. Where the environment variable `MULTIPROCESS` is set, the values are in files
    of that folder.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self._own = CollectorRegistry()
        self._requests = Counter(
            "foveate_requests",
            "Classified or refused pictures, by canonical code.",
            (*_MODEL, "code"),
            registry=own,
        )
        self._in_flight = Gauge(
            "foveate_requests_in_flight",
            "Pictures that are being classified.",
            _MODEL,
            registry=own,
            multiprocess_mode="livesum",
        )
        self._waiting = Gauge(
            "foveate_requests_waiting",
            "Pictures in the queue.",
            _MODEL,
            registry=own,
            multiprocess_mode="livesum",
        )
        self._stages = {
            stage: Histogram(
                f"foveate_{stage}_seconds", text, _MODEL, registry=own, buckets=_SECONDS
            )
            for stage, text in (
                ("request", "From a picture's arrival to its answer."),
                ("decode", "Decoding, resizing and cropping a picture."),
                ("queue", "In the queue."),
                ("infer", "The run of the picture's batch."),
                ("encode", "Ranking the classes and drawing the maps of a picture."),
            )
        }
        self._batch_size = Histogram(
            "foveate_batch_size", "Pictures in a batch.", _MODEL, registry=own, buckets=_PICTURES
        )
        self._batch_seconds = Histogram(
            "foveate_batch_seconds", "Runs of the engine.", _MODEL, registry=own, buckets=_SECONDS
        )
        self._busy = Counter(
            "foveate_engine_busy_seconds",
            "Seconds that a lane of an engine was busy; its rate is the utilisation.",
            (*_MODEL, "lane"),
            registry=own,
        )
        self._lookups, self._lookup_seconds = (
            {
                result: Counter(f"foveate_cache_{result}{unit}", text, _MODEL, registry=own)
                for result, text in texts.items()
            }
            for unit, texts in (
                ("", {"hits": "Answers from the cache.", "misses": "Lookups without an answer."}),
                (
                    "_seconds",
                    {
                        "hits": "Seconds of the lookups with an answer.",
                        "misses": "Seconds of the lookups without an answer.",
                    },
                ),
            )
        )
        self._joined = Counter(
            "foveate_requests_joined",
            "Pictures that shared the run of an identical request in flight.",
            _MODEL,
            registry=own,
        )
        self._load_seconds = Gauge(
            "foveate_model_load_seconds",
            "The last load of a version.",
            _MODEL,
            registry=own,
            multiprocess_mode="livemax",
        )
        self._ready = Gauge(
            "foveate_model_ready",
            "Processes in which a version serves.",
            _MODEL,
            registry=own,
            multiprocess_mode="livesum",
        )
        # A latency objective may change these at any time.
        self._policy = {
            name: Gauge(name, text, _MODEL, registry=own, multiprocess_mode="livemax")
            for name, text in (
                ("foveate_instances", "Instances of a version, in each process."),
                ("foveate_batch_limit", "The most pictures in a batch."),
                ("foveate_batch_delay_limit_seconds", "The longest wait for a batch to fill."),
                ("foveate_queue_limit", "The most pictures in the queue."),
            )
        }
        self._calls = Counter(
            "foveate_calls", "gRPC calls, by canonical code.", ("method", "code"), registry=own
        )
        self._calls_in_flight = Gauge(
            "foveate_calls_in_flight",
            "gRPC calls in flight.",
            ("method",),
            registry=own,
            multiprocess_mode="livesum",
        )
        self._of_versions = (
            *(self._requests, self._in_flight, self._waiting, *self._stages.values()),
            *(self._batch_size, self._batch_seconds, self._busy, self._joined),
            *(*self._lookups.values(), *self._lookup_seconds.values()),
            *(self._load_seconds, self._ready, *self._policy.values()),
        )
        self._known_versions = KnownVersions(own)
        self.registry.register(TritonNames(self._known_versions))
        ProcessCollector(registry=self.registry)

    def on_start(self, model: str, version: str) -> None:
        """Count a request in flight."""
        self._in_flight.labels(model, version).inc()

    def on_answer(self, answer: Answer) -> None:
        """Count an answer and its stages."""
        model, version, timing = answer.model, answer.version, answer.timing
        self._requests.labels(model, version, "OK").inc()
        self._in_flight.labels(model, version).dec()
        self._stages["request"].labels(model, version).observe(timing.total)
        if timing.cached:
            return
        for stage, seconds in (
            ("decode", timing.decode),
            ("queue", timing.queue),
            ("infer", timing.infer),
            ("encode", timing.encode),
        ):
            self._stages[stage].labels(model, version).observe(seconds)

    def on_cache_lookup(self, model: str, version: str, *, hit: bool, seconds: float) -> None:
        """Count a lookup in the cache."""
        result = "hits" if hit else "misses"
        self._lookups[result].labels(model, version).inc()
        self._lookup_seconds[result].labels(model, version).inc(seconds)

    def on_join(self, model: str, version: str) -> None:
        """Count a request that shares the run of an identical one."""
        self._joined.labels(model, version).inc()

    def on_failure(self, model: str, version: str, error: BaseException, seconds: float) -> None:  # noqa: ARG002 - the histograms are of answers
        """Count a failure by its code."""
        self._requests.labels(model, version, _code(error)).inc()
        # A request that was refused unread has a model and no version: it never started.
        if version:
            self._in_flight.labels(model, version).dec()

    def on_batch(self, model: str, version: str, run: BatchRun) -> None:
        """Count a batch."""
        self._batch_size.labels(model, version).observe(run.size)
        self._batch_seconds.labels(model, version).observe(run.infer)
        self._busy.labels(model, version, str(run.lane)).inc(run.gather + run.infer + run.split)

    def on_load(self, model: str, version: str, seconds: float) -> None:
        """Set the seconds of the last load."""
        self._load_seconds.labels(model, version).set(seconds)

    @contextmanager
    def call(self, call: CallRecord) -> Iterator[None]:
        """Count a gRPC call: a CallObserver of the server."""
        in_flight = self._calls_in_flight.labels(call.method)
        in_flight.inc()
        try:
            yield
        finally:
            in_flight.dec()
            self._calls.labels(call.method, call.code.name).inc()

    def sample(self, repository: Repository) -> None:
        """Set the gauges that are read, not counted: readiness, queue lengths, batch policies."""
        states = {
            (model.name, str(status.version)): status.state
            for model in repository.models()
            for status in model.versions
        }
        for labels, state in states.items():
            self._ready.labels(*labels).set(state is State.READY)
            for gauge in (self._waiting, *self._policy.values()):
                gauge.labels(*labels).set(0)
        for loaded in repository.serving():
            manifest, batcher = loaded.bundle.manifest, loaded.batcher
            labels = (manifest.name, str(manifest.version))
            self._waiting.labels(*labels).set(batcher.waiting)
            for name, value in (
                ("foveate_instances", len(loaded.runners)),
                ("foveate_batch_limit", batcher.policy.max_batch),
                ("foveate_batch_delay_limit_seconds", batcher.policy.max_delay),
                ("foveate_queue_limit", batcher.policy.max_queue),
            ):
                self._policy[name].labels(*labels).set(value)
        for model, version in self._known_versions.update(states):
            self._remove(model, version)

    def _remove(self, model: str, version: str) -> None:
        if MULTIPROCESS in os.environ:
            return  # a value cannot be removed from a file
        for metric in self._of_versions:
            metric.remove_by_labels({"model": model, "version": version})


def _code(error: BaseException) -> str:
    if isinstance(error, ServeError):
        return str(Code.Name(CODES[type(error)]))
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else "INTERNAL"
