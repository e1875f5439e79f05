"""The queue of one model: by priority, bounded, without cancelled and expired items."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from foveate_serve.batching.policy import BatchPolicy


@dataclass(kw_only=True, slots=True)
class Reservation:
    """Places in one level of a queue, reserved for pictures that are still being decoded.

    The end of the `with` block releases the places that no picture took.
    """

    queue: "Queue"
    level: int
    left: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.queue.release(self)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Item:
    """Pictures that run in the same batch, and the future of their result.

    Attributes:
        images: uint8 [n, height, width, channels].
        class_ids: int64 [n, K], the classes that the maps among `outputs` explain.
        outputs: the names of the outputs asked for.
        deadline: a time of `time.monotonic`; None is no deadline.
        future: gets the result.
        arrival: a time of `time.monotonic`.
    """

    images: NDArray[np.uint8]
    class_ids: NDArray[np.int64]
    outputs: tuple[str, ...]
    deadline: float | None
    future: asyncio.Future[Any]
    arrival: float = field(default_factory=time.monotonic)

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return len(self.images)


class Queue:
    """Items by level, 0 the highest, and the places reserved for pictures not yet decoded.

    It has no lock of its own: the caller sees to it that one thread at a time puts
    items in or takes them out.
    """

    def __init__(self, levels: int) -> None:
        self._items: list[deque[Item]] = [deque() for _ in range(levels)]
        self._waiting = [0] * levels
        self._reserved = [0] * levels

    @property
    def waiting(self) -> int:
        """How many pictures are in the queue."""
        return sum(self._waiting)

    @property
    def committed(self) -> int:
        """How many places are taken: by pictures in the queue and by reservations."""
        return self.waiting + sum(self._reserved)

    def ahead(self, level: int) -> int:
        """Return how many places are taken at a level or above."""
        return sum(self._waiting[: level + 1]) + sum(self._reserved[: level + 1])

    def exceeds(self, policy: BatchPolicy, level: int, pictures: int) -> bool:
        """Return whether `pictures` more at one level exceed a bound.

        An empty queue takes more than its bound: a request that is larger than the
        bound would otherwise never be admitted.
        """
        own, ahead = self._waiting[level] + self._reserved[level], self.ahead(level)
        return bool(own and own + pictures > policy.bound(level)) or bool(
            ahead and ahead + pictures > policy.max_queue
        )

    def full(self, policy: BatchPolicy) -> bool:
        """Return whether one picture more exceeds a bound at every level."""
        return all(self.exceeds(policy, level, 1) for level in range(len(self._items)))

    def reserve(self, level: int, pictures: int) -> Reservation:
        """Reserve places for `pictures`."""
        self._reserved[level] += pictures
        return Reservation(queue=self, level=level, left=pictures)

    def release(self, reservation: Reservation) -> None:
        """Release the places that no picture took."""
        self._reserved[reservation.level] -= reservation.left
        reservation.left = 0

    def put(self, reservation: Reservation, item: Item) -> None:
        """Put an item into the queue; each of its pictures takes a place of the reservation."""
        reservation.left -= item.pictures
        self._reserved[reservation.level] -= item.pictures
        self._waiting[reservation.level] += item.pictures
        self._items[reservation.level].append(item)

    def oldest(self) -> float:
        """Return the arrival of the item that has waited longest; there must be one."""
        return min(items[0].arrival for items in self._items if items)

    def drop_expired(self, now: float) -> list[Item]:
        """Remove cancelled items, and those past their deadline at `now`; return the latter."""
        expired = [
            item
            for item in self
            if item.future.done() or (item.deadline is not None and item.deadline <= now)
        ]
        self._remove(expired)
        return [item for item in expired if not item.future.done()]

    def take(
        self, policy: BatchPolicy, *, idle: int = 1, lanes: int = 1, picture_seconds: float = 0.0
    ) -> list[Item]:
        """Remove a batch from the queue and return it.

        It holds the first item, however large it is, and those after it that ask for
        the same outputs, in their order. The arguments are those of
        `BatchPolicy.share`.
        """
        most = policy.share(self.waiting, idle=idle, lanes=lanes, picture_seconds=picture_seconds)
        batch: list[Item] = []
        pictures = 0
        for item in self:
            if batch and item.outputs != batch[0].outputs:
                continue
            if batch and pictures + item.pictures > most:
                break
            batch.append(item)
            pictures += item.pictures
            if pictures >= most:
                break
        size = policy.size(pictures)
        while len(batch) > 1 and pictures > size:
            pictures -= batch.pop().pictures
        self._remove(batch)
        return batch

    def _remove(self, items: list[Item]) -> None:
        gone = set(items)
        if not gone:
            return
        for level, waiting in enumerate(self._items):
            self._items[level] = deque(item for item in waiting if item not in gone)
            self._waiting[level] = sum(item.pictures for item in self._items[level])

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the items in the order in which they run."""
        return chain.from_iterable(self._items)
