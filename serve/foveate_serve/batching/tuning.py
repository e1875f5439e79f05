"""The automatic mode: batches, delay and queue for a latency objective, found while serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from foveate_serve.batching.policy import BatchPolicy
    from foveate_serve.classification import Timing
    from foveate_serve.observer import BatchRun

_NEWEST_SHARE = 0.1
"""The weight of the newest value in the moving averages."""

_RUNS = 8
"""The runs after which the policy is chosen again: few, as runs of too large a size are long."""

_AIM = 0.8
"""The share of the objective that the server may use: the rest is left for the network."""

_ANSWERS = 100
"""The answers after which the margin is set again."""
_SMALLEST_MARGIN = 0.2
_CUT = 0.8
_RAISE = 0.05

_WORTH = 1.1
"""The gain in throughput for which a larger size is worth its longer runs."""
_STILL_WORTH = 1.03
"""The gain below which a smaller size returns; under `_WORTH`, so that noise changes nothing."""

_TOGETHER = 1.2
"""The mean batch size from which pictures count as arriving together."""


class Tuner:
    """Finds a model's batch size, delay and queue bound within what its configuration allows.

    It learns from the server's own runs and answers: a calibration before the start
    would not see the load, the decoding and the other models that share the cores.

    - The size is that of the highest throughput among those whose runs fit
      twice into the objective, since a picture may have to wait for a whole run
      before its own; a smaller one where it gives as much, since its runs are
      shorter. Sizes that were never run are tried from small to large.
    - The queue holds as many pictures as finish within the objective, at the rate
      at which they finish while the queue is not empty (Little's law).
    - An idle lane waits for a batch to fill where larger batches have the higher
      throughput and pictures arrive together.

    The choice is corrected by the latencies. Where more than one of 100 answers
    took longer than the aim, the share of it that pictures may spend in the queue is
    cut. Where none did, the share grows (additive increase, multiplicative decrease,
    as in Clipper, Crankshaw et al. 2017).

    `policy` is the current choice, within `bounds`, whose objective is `objective`;
    `lanes` batches run at one time. Times are in seconds.
    """

    def __init__(self, bounds: BatchPolicy, objective: float, *, lanes: int) -> None:
        self._bounds = bounds
        self._lanes = lanes
        self._aim = _AIM * objective
        self._sizes = _candidates(bounds)
        self._size = self._sizes[0]
        self.policy = replace(bounds, max_batch=self._size, preferred_sizes=(), max_delay=0.0)
        self._seconds_of = _BySize()
        self._runs = 0
        self._mean_size = 1.0
        # Seconds from one picture to the next: of all, and of those taken from a queue.
        self._interval: float | None = None
        self._busy_interval: float | None = None
        self._last: float | None = None
        self._queued = False
        self._other: float | None = None
        self._margin = 1.0
        self._answers = 0
        self._late = 0

    def record_run(self, run: BatchRun, *, waiting: int, now: float) -> None:
        """Record a run that ended at `now`, a time of `time.monotonic`.

        `waiting` is the number of places in the queue that were then taken.
        """
        self._runs += 1
        self._seconds_of.learn(run.size, run.gather + run.infer + run.split, self._runs)
        self._mean_size = _average(self._mean_size, run.size)
        if self._last is not None:
            interval = (now - self._last) / run.size
            self._interval = _average(self._interval, interval)
            if self._queued:
                self._busy_interval = _average(self._busy_interval, interval)
        self._last, self._queued = now, waiting > 0
        if self._runs % _RUNS == 1:
            self._choose()

    def record_timing(self, timing: Timing) -> None:
        """Record the times of a request that was answered."""
        self._other = _average(self._other, timing.total - timing.queue - timing.infer)
        self._answers += 1
        self._late += self._answers > 0 and timing.total > self._aim
        if self._answers < _ANSWERS:
            return
        self._answers = 0
        if self._late > _ANSWERS / 100:
            self._margin = max(_SMALLEST_MARGIN, _CUT * self._margin)
            # The requests in flight were admitted under the old margin and do not count.
            self._answers = -self.policy.max_queue
            self._choose()
        elif not self._late:
            self._margin = min(1.0, self._margin + _RAISE)
        self._late = 0

    def _choose(self) -> None:
        self._size = self._best_size()
        seconds = self._seconds(self._size)
        interval = self._busy_interval or seconds / (self._size * self._lanes)
        queue = int((self._margin * self._aim - seconds) / interval)
        self.policy = replace(
            self._bounds,
            max_batch=self._size,
            preferred_sizes=tuple(s for s in self._bounds.preferred_sizes if s <= self._size),
            max_delay=self._delay(seconds),
            # Room for each lane's next batch, however short the objective.
            max_queue=min(max(self._size * self._lanes, queue), self._bounds.max_queue),
        )

    def _best_size(self) -> int:
        feasible = [size for size in self._sizes if 2 * self._seconds(size) <= self._run_budget]
        if not feasible:
            return self._sizes[0]
        untried = [size for size in feasible if size > max(self._seconds_of)]
        if untried:
            return untried[0]
        best = feasible[0]
        for size in feasible[1:]:
            worth = _STILL_WORTH if size == self._size else _WORTH
            if self._throughput(size) >= worth * self._throughput(best):
                best = size
        return best

    def _delay(self, seconds: float) -> float:
        mean = min(self._mean_size, self._size)
        pays = self._throughput(self._size) >= _WORTH * self._throughput(mean)
        if mean < _TOGETHER or not pays or self._interval is None:
            return 0.0
        spare = max(0.0, self._run_budget - 2 * seconds) / 2
        return min((self._size - mean) * self._interval, spare)

    @property
    def _run_budget(self) -> float:
        """The seconds that are left for a run and the one before it."""
        return self._aim - (self._other or 0.0)

    def _seconds(self, size: float) -> float:
        """Return the seconds of a batch; above the largest known size, extrapolated linearly."""
        known = sorted(self._seconds_of)
        largest = known[-1]
        if size > largest:
            return self._seconds_of[largest] * size / largest
        return float(np.interp(size, known, [self._seconds_of[other] for other in known]))

    def _throughput(self, size: float) -> float:
        return size / self._seconds(size)


class _BySize(dict[int, float]):
    """Means by batch size; the weight of a run decays with its age."""

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, tuple[float, int]] = {}

    def learn(self, size: int, value: float, run: int) -> None:
        """Add a value. `run` is the number of its run, counted over all sizes."""
        weight, newest = self._weights.get(size, (0.0, run))
        weight = 1 + weight * (1 - _NEWEST_SHARE) ** (run - newest)
        mean = self.get(size, value)
        self[size] = mean + (value - mean) / weight
        self._weights[size] = weight, run


def _candidates(bounds: BatchPolicy) -> Sequence[int]:
    """Return 1 and the preferred sizes, or where there are none, powers of two and the largest."""
    powers = (1 << exponent for exponent in range(bounds.max_batch.bit_length()))
    return sorted({1, *(bounds.preferred_sizes or (*powers, bounds.max_batch))})


def _average(average: float | None, newest: float) -> float:
    return newest if average is None else average + _NEWEST_SHARE * (newest - average)
