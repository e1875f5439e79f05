"""Statistics of the models: counts, and the time of each stage."""

import time
from collections import defaultdict
from dataclasses import dataclass, field

from foveate_serve.classification import Answer
from foveate_serve.observer import BatchRun, Observer


@dataclass(slots=True)
class Durations:
    """A count of events, and their total seconds."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one event."""
        self.count += 1
        self.seconds += seconds


@dataclass(slots=True)
class BatchStatistics:
    """The stages of the runs of one batch size, as in BatchRun."""

    gather: Durations = field(default_factory=Durations)
    infer: Durations = field(default_factory=Durations)
    split: Durations = field(default_factory=Durations)


@dataclass(slots=True)
class ModelStatistics:
    """The statistics of one version of one model.

    Attributes:
        success, failure: the requests that succeeded, and those that failed.
        decode, queue, infer, encode: the stages of the answers not from the cache.
        cache_hit, cache_miss: the lookups in the cache.
        inferences, executions: the pictures and the batches run.
        last_inference: when the last batch ended, in seconds since 1970.
        batches: the batches by size.
    """

    success: Durations = field(default_factory=Durations)
    failure: Durations = field(default_factory=Durations)
    decode: Durations = field(default_factory=Durations)
    queue: Durations = field(default_factory=Durations)
    infer: Durations = field(default_factory=Durations)
    encode: Durations = field(default_factory=Durations)
    cache_hit: Durations = field(default_factory=Durations)
    cache_miss: Durations = field(default_factory=Durations)
    inferences: int = 0
    executions: int = 0
    last_inference: float | None = None
    batches: dict[int, BatchStatistics] = field(
        default_factory=lambda: defaultdict(BatchStatistics)
    )


class Statistics(Observer):
    """The statistics of every version that has had a request; a reload does not reset them."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], ModelStatistics] = defaultdict(ModelStatistics)

    def of(self, model: str, version: str) -> ModelStatistics:
        """Return the statistics of one version; zeros where it has had no request."""
        return self._models[model, version]

    def on_answer(self, answer: Answer) -> None:
        """Count a request that succeeded."""
        statistics, timing = self._models[answer.model, answer.version], answer.timing
        statistics.success.add(timing.total)
        if timing.cached:
            return
        statistics.decode.add(timing.decode)
        statistics.queue.add(timing.queue)
        statistics.infer.add(timing.infer)
        statistics.encode.add(timing.encode)

    def on_cache_lookup(self, model: str, version: str, *, hit: bool, seconds: float) -> None:
        """Count a lookup in the cache."""
        statistics = self._models[model, version]
        (statistics.cache_hit if hit else statistics.cache_miss).add(seconds)

    def on_failure(self, model: str, version: str, error: BaseException, seconds: float) -> None:  # noqa: ARG002
        """Count a request that failed after its version was found."""
        if version:
            self._models[model, version].failure.add(seconds)

    def on_batch(self, model: str, version: str, run: BatchRun) -> None:
        """Count a batch."""
        statistics = self._models[model, version]
        statistics.inferences += run.size
        statistics.executions += 1
        statistics.last_inference = time.time()
        batches = statistics.batches[run.size]
        batches.gather.add(run.gather)
        batches.infer.add(run.infer)
        batches.split.add(run.split)
