"""The policy of a model: the size of its batches, their delay, and the bounds of its queue."""

import math
from dataclasses import dataclass

from foveate_runtime.backends.base import Runner
from foveate_runtime.cores import ANY_CORE, Cores

LONG_SECONDS = 0.02
"""The longest run worth forming on one of several lanes: a handover costs a hundredth of it."""


@dataclass(frozen=True, kw_only=True)
class BatchPolicy:
    """How batches form, and on how many instances of the model they run.

    An idle lane starts at once on what is in the queue, and while it runs the next
    batch gathers. Higher priorities run first, however long lower ones have waited.

    Attributes:
        max_batch: the most pictures in a batch.
        preferred_sizes: sizes that run best. A batch has the largest of them
            that the queue fills.
        max_delay: seconds, from the arrival of the oldest picture, for which an
            idle lane waits until a batch is full: of a preferred size, or of
            `max_batch`.
        max_queue: the bound of the queue. A picture is refused where so many
            others wait at its priority or above.
        priority_queues: a further bound for each priority, the highest, which is
            1, first. Empty, there is one priority.
        default_priority: the priority of requests without one. None is the lowest.
        cores: one entry for each instance of the model: the cores that it runs on.
        lanes: the most batches that an instance runs at one time. 0 is as many as
            its engine takes.
        objective: the time in seconds within which 99 of 100 requests are to be
            answered. Where it is set, a Tuner finds sizes, delay and queue, and
            the values here are their upper bounds.
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
        """Return the level of a request's priority, from 0; below the lowest it is the lowest."""
        if not self.priority_queues:
            return 0
        wanted = priority or self.default_priority or self.priorities
        return min(wanted, self.priorities) - 1

    def bound(self, level: int) -> int:
        """Return the bound of one level of the queue; below the priorities it is `max_queue`."""
        own = self.priority_queues[level : level + 1]
        return own[0] if own else self.max_queue

    def size(self, waiting: int) -> int:
        """Return the size of the batch to form from `waiting` pictures."""
        preferred = [size for size in self.preferred_sizes if size <= waiting]
        return max(preferred, default=min(waiting, self.max_batch))

    def share(self, waiting: int, *, idle: int, lanes: int, picture_seconds: float = 0.0) -> int:
        """Return the most pictures that an idle lane takes from the queue.

        All lanes together hold at most one batch of `max_batch`, so that they need
        no more memory than one lane. Each of several lanes takes at most as many as
        run in `LONG_SECONDS`, or two if these are fewer. Where there are preferred
        sizes or a delay, each lane takes up to `max_batch`.

        Args:
            waiting: the pictures in the queue.
            idle: the idle lanes.
            lanes: all lanes.
            picture_seconds: the run time of one picture; 0 if unknown.
        """
        if self.preferred_sizes or self.max_delay:
            return self.max_batch
        most = max(1, self.max_batch // lanes)
        if lanes > 1 and picture_seconds:
            most = min(most, max(2, math.ceil(LONG_SECONDS / picture_seconds)))
        return min(most, -(-waiting // idle))

    @property
    def enough(self) -> int:
        """How many pictures end the delay for a batch to fill."""
        return min(self.preferred_sizes, default=self.max_batch)
