"""How a model's batches form, and how many pictures may wait for them."""

import math
from dataclasses import dataclass

from foveate_runtime.backends.base import Runner
from foveate_runtime.cores import ANY_CORE, Cores

LONG_SECONDS = 0.02
"""A run on a lane of several gains nothing by being longer: handing it over takes a hundredth."""


@dataclass(frozen=True, kw_only=True)
class BatchPolicy:
    """How batches form, and on how many instances of the model they run.

    A batch holds at most `max_batch` pictures, and where there are
    `preferred_sizes`, the largest of them that the waiting pictures fill. An
    idle instance starts at once on whatever waits, and while it runs the next
    batch gathers; `max_delay` makes it wait that many seconds from the arrival
    of the oldest picture for a batch to fill: to a preferred size, or to
    `max_batch`.

    A picture is refused where `max_queue` others wait at its priority or above.
    `priority_queues` has a bound for each priority besides, the highest, which
    is 1, first; empty, there is one priority. A request without one gets
    `default_priority`, or the lowest where that is None. Higher priorities run
    first, however long lower ones have waited.

    There is one instance for each entry of `cores`, which runs on those cores,
    and runs at most `lanes` batches at one time, 0 meaning as many as its engine
    takes.

    `objective`, in seconds, is the time within which 99 of 100 requests are to
    be answered. Where it is set, sizes, delay and queue are found while
    serving, and what stands here are their upper bounds.
    """

    max_batch: int = 8
    preferred_sizes: tuple[int, ...] = ()
    max_delay: float = 0.0
    max_queue: int = 256
    priority_queues: tuple[int, ...] = ()
    default_priority: int | None = None
    cores: tuple[Cores, ...] = (ANY_CORE,)
    lanes: int = 0
    objective: float | None = None

    @property
    def priorities(self) -> int:
        """How many priorities there are."""
        return len(self.priority_queues) or 1

    def lanes_of(self, runner: Runner) -> int:
        """Return how many batches a runner runs at one time."""
        return min(runner.lanes, self.lanes or runner.lanes)

    def level(self, priority: int) -> int:
        """Return the place of a request's priority, from 0; those below the lowest are it."""
        wanted = priority or self.default_priority or self.priorities
        return min(wanted, self.priorities) - 1

    def bound(self, level: int) -> int:
        """Return how many pictures may wait at one level."""
        return self.priority_queues[level] if self.priority_queues else self.max_queue

    def size(self, waiting: int) -> int:
        """Return the size of the batch to form of so many pictures."""
        preferred = (size for size in self.preferred_sizes if size <= waiting)
        return max(preferred, default=min(waiting, self.max_batch))

    def share(self, waiting: int, *, idle: int, lanes: int, picture_seconds: float = 0.0) -> int:
        """Return the most pictures that an idle lane takes of those that wait.

        All lanes together hold no more than a batch for one would, whose memory
        they would need several times over. One of several takes no more than two
        pictures, or what keeps it busy for `LONG_SECONDS`, where one takes
        `picture_seconds`, 0 if that is unknown. Where batches are to have a
        size, or to wait for one, no lane takes less.
        """
        if self.preferred_sizes or self.max_delay:
            return self.max_batch
        most = max(1, self.max_batch // lanes)
        if lanes > 1 and picture_seconds:
            most = min(most, max(2, math.ceil(LONG_SECONDS / picture_seconds)))
        return min(most, -(-waiting // idle))

    @property
    def enough(self) -> int:
        """How many pictures end the wait for a batch to fill."""
        return min(self.preferred_sizes, default=self.max_batch)
