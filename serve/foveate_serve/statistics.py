"""Statistics of the models: counts, and the time of each stage.

The protocols' statistics and the metrics read the same numbers.
"""

import asyncio
import time
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass

from foveate_serve.classification import Answer
from foveate_serve.errors import ServeError
from foveate_serve.figures import Figures, Numbers
from foveate_serve.observer import BatchRun, Observer

# From a tenth of a millisecond, which a stage of a small model takes, to ten seconds.
SECONDS = (
    *(1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
PICTURES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
STAGES = ("request", "decode", "queue", "infer", "encode")

OK = "OK"
UNEXPECTED = "Exception"
"""The outcomes of requests that are not the names of errors."""


class Histogram:
    """Counts of values up to each of `bounds` and above the last, and their total.

    Without bounds it is one count and the total.
    """

    __slots__ = ("bounds", "values")

    def __init__(self, values: Numbers, bounds: tuple[float, ...]) -> None:
        self.values, self.bounds = values, bounds

    def add(self, value: float) -> None:
        """Count a value."""
        self.values[bisect_left(self.bounds, value)] += 1
        self.values[-1] += value

    @property
    def count(self) -> int:
        """How many values there are."""
        return int(sum(self.values[:-1]))

    @property
    def seconds(self) -> float:
        """Their total."""
        return float(self.values[-1])


@dataclass(slots=True)
class BatchStatistics:
    """The runs of one batch size, and the total seconds of their stages, as in BatchRun."""

    count: int = 0
    gather: float = 0.0
    infer: float = 0.0
    split: float = 0.0


class ModelStatistics:
    """The statistics of one version of one model.

    Attributes:
        success: the requests that succeeded.
        failure: the requests that failed.
        decode, queue, infer, encode: the stages of the answers not from the cache.
        stages: the numbers of these five, in the order of STAGES.
        cache_hit, cache_miss: the lookups in the cache.
        sizes, runs: the pictures and the seconds of each batch.
        last_inference: when the last batch ended, in seconds since 1970.
        batches: the batches by size.
        in_flight, succeeded, joined: one number each: the requests that have begun and
            have not ended, that have an answer, that shared the run of an identical one.
        lanes: the seconds for which each lane was busy, by its number.
    """

    def __init__(self, figures: Figures, labels: tuple[str, str]) -> None:
        def histogram(name: str, bounds: tuple[float, ...] = ()) -> Histogram:
            return Histogram(figures.slots(name, labels, len(bounds) + 2), bounds)

        stages = [histogram(stage, SECONDS) for stage in STAGES]
        self.success, self.decode, self.queue, self.infer, self.encode = stages
        self.stages = tuple(stage.values for stage in stages)
        self.sizes = histogram("batch_size", PICTURES)
        self.runs = histogram("batch_seconds", SECONDS)
        self.failure = histogram("failures")
        self.cache_hit, self.cache_miss = histogram("cache_hits"), histogram("cache_misses")
        self.in_flight = figures.slots("in_flight", labels)
        self.succeeded = figures.slots("requests", (*labels, OK))
        self.joined = figures.slots("joined", labels)
        self.lanes: dict[int, Numbers] = {}
        self.last_inference: float | None = None
        self.batches: dict[int, BatchStatistics] = defaultdict(BatchStatistics)

    @property
    def inferences(self) -> int:
        """The pictures that were run."""
        return int(self.sizes.seconds)

    @property
    def executions(self) -> int:
        """The batches that were run."""
        return self.sizes.count


class Statistics(Observer):
    """The statistics of every version that has had a request; a reload does not reset them.

    All of them are in `figures`, by the labels `model` and `version`.
    """

    def __init__(self, figures: Figures | None = None) -> None:
        self.figures = figures or Figures()
        self._models: dict[tuple[str, str], ModelStatistics] = {}

    def of(self, model: str, version: str) -> ModelStatistics:
        """Return the statistics of one version; zeros where it has had no request."""
        found = self._models.get((model, version))
        return ModelStatistics(Figures(), (model, version)) if found is None else found

    def forget(self, model: str, version: str) -> None:
        """Drop the statistics of a version."""
        self._models.pop((model, version), None)
        self.figures.forget((model, version))

    def set(self, name: str, model: str, version: str, value: float, *labels: str) -> None:
        """Set a number of a version that is read, not counted; `labels` are further ones."""
        self.figures.slots(name, (model, version, *labels))[0] = value

    def on_start(self, model: str, version: str) -> None:
        """Count a request in flight."""
        statistics = self._models.get((model, version)) or self._of(model, version)
        statistics.in_flight[0] += 1

    def on_answer(self, answer: Answer) -> None:
        """Count a request that succeeded, and its stages."""
        model, version, timing = answer.model, answer.version, answer.timing
        statistics = self._models.get((model, version)) or self._of(model, version)
        statistics.in_flight[0] -= 1
        statistics.succeeded[0] += 1
        seconds = (timing.total, timing.decode, timing.queue, timing.infer, timing.encode)
        # As Histogram.add, which would be five calls for each request.
        for numbers, stage in zip(statistics.stages, seconds, strict=True):
            numbers[bisect_left(SECONDS, stage)] += 1
            numbers[-1] += stage
            if timing.cached:
                break  # the stages took no time

    def on_cache_lookup(self, model: str, version: str, *, hit: bool, seconds: float) -> None:
        """Count a lookup in the cache."""
        statistics = self._of(model, version)
        (statistics.cache_hit if hit else statistics.cache_miss).add(seconds)

    def on_join(self, model: str, version: str) -> None:
        """Count a request that shares the run of an identical one."""
        self._of(model, version).joined[0] += 1

    def on_failure(self, model: str, version: str, error: BaseException, seconds: float) -> None:
        """Count a request that failed, by its error."""
        self.figures.slots("requests", (model, version, _outcome(error)))[0] += 1
        # A request that was refused unread has a model and no version: it never started.
        if version:
            statistics = self._of(model, version)
            statistics.failure.add(seconds)
            statistics.in_flight[0] -= 1

    def on_batch(self, model: str, version: str, run: BatchRun) -> None:
        """Count a batch."""
        statistics = self._models.get((model, version)) or self._of(model, version)
        statistics.sizes.add(run.size)
        statistics.runs.add(run.infer)
        lane = statistics.lanes.get(run.lane)
        if lane is None:
            lane = self.figures.slots("busy", (model, version, str(run.lane)))
            statistics.lanes[run.lane] = lane
        lane[0] += run.gather + run.infer + run.split
        statistics.last_inference = time.time()
        batches = statistics.batches[run.size]
        batches.count += 1
        batches.gather += run.gather
        batches.infer += run.infer
        batches.split += run.split

    def on_load(self, model: str, version: str, seconds: float) -> None:
        """Set the seconds of the last load."""
        self.set("load_seconds", model, version, seconds)

    def _of(self, model: str, version: str) -> ModelStatistics:
        found = self._models.get((model, version))
        if found is None:
            found = self._models[model, version] = ModelStatistics(self.figures, (model, version))
        return found


def _outcome(error: BaseException) -> str:
    known = isinstance(error, ServeError | asyncio.CancelledError)
    return type(error).__name__ if known else UNEXPECTED
