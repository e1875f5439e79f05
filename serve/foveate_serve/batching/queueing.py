"""The queue of one model: by priority, bounded, without cancelled and expired items."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from foveate_serve.batching.policy import BatchPolicy

_SHARE = 7
"""A client that is alone may take seven eighths of a queue."""


class Reservation:
    """Places in one level of a queue, reserved for pictures that are still being decoded.

    The end of the `with` block releases the places that no picture took. Until then the
    pictures count as the client's.
    """

    __slots__ = ("_queue", "client", "left", "level", "pictures")

    def __init__(self, queue: "Queue", level: int, pictures: int, client: str) -> None:
        self._queue, self.level, self.client = queue, level, client
        self.pictures = self.left = pictures

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.release(self)


class Item:
    """Pictures that run in the same batch, and the future of their result.

    Attributes:
        images: uint8 [n, height, width, channels].
        class_ids: int64 [n, K], the classes that the maps among `outputs` explain.
        outputs: the names of the outputs asked for.
        deadline: a time of `time.monotonic`; None is no deadline.
        future: gets the result.
        pictures: how many there are.
        arrival: a time of `time.monotonic`.
    """

    __slots__ = ("arrival", "class_ids", "deadline", "future", "images", "outputs", "pictures")

    def __init__(
        self,
        *,
        images: NDArray[np.uint8],
        class_ids: NDArray[np.int64],
        outputs: tuple[str, ...],
        deadline: float | None,
        future: asyncio.Future[Any],
    ) -> None:
        self.images, self.class_ids, self.outputs = images, class_ids, outputs
        self.deadline, self.future = deadline, future
        self.pictures = len(images)
        self.arrival = time.monotonic()


class Queue:
    """Items by level, 0 the highest, and the places reserved for pictures not yet decoded.

    It has no lock: the caller lets one thread at a time put items in or take them out.

    Attributes:
        waiting: how many pictures are in the queue.
        reserved: how many places are reserved for others.
    """

    def __init__(self, levels: int) -> None:
        self._items: list[deque[Item]] = [deque() for _ in range(levels)]
        # By level: the pictures in the queue, and the places reserved. Only the caller's thread
        # that reserves changes the latter.
        self._waiting = [0] * levels
        self._reserved = [0] * levels
        self.waiting = 0
        self.reserved = 0
        # By client: the pictures whose reservations have not ended.
        self._held: dict[str, int] = {}

    @property
    def committed(self) -> int:
        """How many places are taken: by pictures in the queue and by reservations."""
        return self.waiting + self.reserved

    def ahead(self, level: int) -> int:
        """Return how many places are taken at a level or above."""
        return sum(self._waiting[: level + 1]) + sum(self._reserved[: level + 1])

    def exceeds(self, policy: BatchPolicy, level: int, pictures: int) -> bool:
        """Return whether `pictures` more at one level exceed a bound.

        An empty queue takes more than its bound: a request that is larger than the
        bound would otherwise never be admitted.
        """
        if not self.waiting and not self.reserved:
            return False
        own, ahead = self._waiting[level] + self._reserved[level], self.ahead(level)
        return bool(own and own + pictures > policy.bound(level)) or bool(
            ahead and ahead + pictures > policy.max_queue
        )

    def full(self, policy: BatchPolicy) -> bool:
        """Return whether one picture more exceeds a bound at every level of requests."""
        return all(self.exceeds(policy, level, 1) for level in range(policy.priorities))

    def crowds(self, policy: BatchPolicy, client: str, pictures: int) -> bool:
        """Return whether `pictures` more of a client leave too little room for others.

        A client may have `_SHARE` times as many pictures in the queue and running as there
        are free places (dynamic thresholds, Choudhury and Hahne 1998).
        """
        held = self._held.get(client, 0)
        free = policy.max_queue - self.committed
        return bool(held and client) and held + pictures > _SHARE * free

    def reserve(self, level: int, pictures: int, client: str = "") -> Reservation:
        """Reserve places for `pictures` of a client; an empty name stands for this process."""
        self._reserved[level] += pictures
        self.reserved += pictures
        self._held[client] = self._held.get(client, 0) + pictures
        return Reservation(self, level, pictures, client)

    def release(self, reservation: Reservation) -> None:
        """End a reservation: release the places that no picture took, and the client's share."""
        self._reserved[reservation.level] -= reservation.left
        self.reserved -= reservation.left
        reservation.left = 0
        held = self._held.get(reservation.client, 0) - reservation.pictures
        if held:
            self._held[reservation.client] = held
        else:
            self._held.pop(reservation.client, None)
        reservation.pictures = 0

    def put(self, reservation: Reservation, item: Item) -> None:
        """Put an item into the queue; each of its pictures takes a place of the reservation."""
        level, pictures = reservation.level, item.pictures
        reservation.left -= pictures
        self._reserved[level] -= pictures
        self.reserved -= pictures
        self._waiting[level] += pictures
        self.waiting += pictures
        self._items[level].append(item)

    def oldest(self) -> float:
        """Return the arrival of the item that has waited longest; there must be one."""
        return min(items[0].arrival for items in self._items if items)

    def drop_expired(self, now: float) -> list[Item]:
        """Remove cancelled items, and those past their deadline at `now`; return the latter."""
        gone, expired = [], []
        for item in chain.from_iterable(self._items):
            if item.future.done():
                gone.append(item)
            elif item.deadline is not None and item.deadline <= now:
                expired.append(item)
        if gone or expired:
            self._remove([*gone, *expired])
        return expired

    def take(self, policy: BatchPolicy, most: int) -> list[Item]:
        """Remove a batch of at most `most` pictures from the queue and return it.

        It holds the first item, however large it is, and those after it that have
        the same outputs, in their order.
        """
        batch: list[Item] = []
        pictures = 0
        for item in chain.from_iterable(self._items):
            if batch and item.outputs != batch[0].outputs:
                continue
            if batch and pictures + item.pictures > most:
                break
            batch.append(item)
            pictures += item.pictures
            if pictures >= most:
                break
        if len(batch) > 1:
            size = policy.size(pictures)
            while len(batch) > 1 and pictures > size:
                pictures -= batch.pop().pictures
        self._remove(batch)
        return batch

    def _remove(self, items: list[Item]) -> None:
        gone = set(items)
        for level, waiting in enumerate(self._items):
            if waiting:
                kept: deque[Item] = deque()
                for item in waiting:
                    if item in gone:
                        self._waiting[level] -= item.pictures
                        self.waiting -= item.pictures
                    else:
                        kept.append(item)
                self._items[level] = kept

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the items in the order in which they run."""
        return chain.from_iterable(self._items)
