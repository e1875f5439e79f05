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
"""The runs after which it is chosen anew: few, as those of too large a size are long."""

_AIM = 0.8
"""The share of the objective that the server uses up: it does not see the way to the client."""

_ANSWERS = 100
"""The answers after which the margin is set anew."""
_SMALLEST_MARGIN = 0.2
_CUT = 0.8
_RAISE = 0.05

_WORTH = 1.1
"""How many times the throughput a larger size must give, to be worth its longer runs."""
_STILL_WORTH = 1.03
"""How many times it must go on to give, so that noise does not change the size to and fro."""

_TOGETHER = 1.2
"""The mean batch size from which on pictures are taken to come together."""


class Tuner:
    """Finds a model's batch size, delay and queue bound within what its configuration allows.

    It learns from the runs and the answers themselves: the load at hand, the
    decoding and the other models share the cores with a run, which a
    calibration beforehand would not see.

    - The size is that of the highest throughput among those whose runs fit
      twice into the objective, since a picture may have to wait for a whole run
      before its own; a smaller one where it gives as much, since its runs are
      shorter. Sizes that were never run are tried from small to large.
    - The queue is as long as the pictures that are done within the objective,
      at the pace at which they are done while others wait (Little's law).
    - An idle engine waits for a batch to fill where larger batches have the
      higher throughput and pictures come together anyway.

    What this leaves out shows in the latencies: where of 100 answers more than
    one took longer than the aim, the share of it that pictures may spend in the
    queue is cut, and where none did, it grows again (additive increase,
    multiplicative decrease, as in Clipper, Crankshaw et al. 2017).

    `policy` is what is chosen now, within `bounds`, whose objective is
    `objective`; `lanes` batches run at one time. Times are in seconds.
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
        # Seconds from one picture to the next: of all, and of those that came off a queue.
        self._interval: float | None = None
        self._busy_interval: float | None = None
        self._last: float | None = None
        self._queued = False
        self._other: float | None = None
        self._margin = 1.0
        self._answers = 0
        self._late = 0

    def ran(self, run: BatchRun, *, waiting: int, now: float) -> None:
        """Learn from a run that ended at `now`, a time of `time.monotonic`.

        `waiting` are the pictures that then had a place in the queue.
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

    def answered(self, timing: Timing) -> None:
        """Learn from an answer how long it took in all."""
        self._other = _average(self._other, timing.total - timing.queue - timing.infer)
        self._answers += 1
        self._late += self._answers > 0 and timing.total > self._aim
        if self._answers < _ANSWERS:
            return
        self._answers = 0
        if self._late > _ANSWERS / 100:
            self._margin = max(_SMALLEST_MARGIN, _CUT * self._margin)
            # Those under way were let in before, and say nothing of the new margin.
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
            # Each lane's next batch may always gather, however short the objective.
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
        """Return how long a batch takes; one larger than any so far, as several of the largest."""
        known = sorted(self._seconds_of)
        largest = known[-1]
        if size > largest:
            return self._seconds_of[largest] * size / largest
        return float(np.interp(size, known, [self._seconds_of[other] for other in known]))

    def _throughput(self, size: float) -> float:
        return size / self._seconds(size)


class _BySize(dict[int, float]):
    """Means by batch size, weighted by age: each run that is over weighs less by a share."""

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, tuple[float, int]] = {}

    def learn(self, size: int, value: float, run: int) -> None:
        """Take in a value of the run of that number, which counts the runs of all sizes."""
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
