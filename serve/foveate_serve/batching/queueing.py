"""The pictures that wait for a model: by priority, bounded, and gone once nobody wants them."""

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
class Places:
    """Places in one level of a queue, kept for pictures on their way there.

    Those that no picture took are given back where a `with` block ends.
    """

    queue: "Queue"
    level: int
    left: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.queue.give_back(self)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Item:
    """Pictures that run together, and the future of whoever waits for them.

    `images` is uint8 [n, height, width, channels]. `class_ids`, int64 [n, K],
    are those that the maps among `outputs` explain; `deadline` and `arrival` are
    times of `time.monotonic`. `single` tells that there is one picture, whose
    answer has no dimension for several.
    """

    images: NDArray[np.uint8]
    class_ids: NDArray[np.int64]
    outputs: tuple[str, ...]
    deadline: float | None
    future: asyncio.Future[Any]
    single: bool = False
    arrival: float = field(default_factory=time.monotonic)

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return len(self.images)


class Queue:
    """Items by level, 0 the highest, and the places kept for pictures that are still decoded.

    It has no lock: what takes items out, or puts them in, is called by one
    thread at a time.
    """

    def __init__(self, levels: int) -> None:
        self._items: list[deque[Item]] = [deque() for _ in range(levels)]
        self._waiting = [0] * levels
        self._kept = [0] * levels

    @property
    def waiting(self) -> int:
        """How many pictures wait for a batch."""
        return sum(self._waiting)

    @property
    def expected(self) -> int:
        """How many pictures wait or have a place."""
        return self.waiting + sum(self._kept)

    def ahead(self, level: int) -> int:
        """Return how many pictures wait or have a place at a level or above."""
        return sum(self._waiting[: level + 1]) + sum(self._kept[: level + 1])

    def exceeds(self, policy: BatchPolicy, level: int, pictures: int) -> bool:
        """Tell whether so many pictures more at one level are too many.

        More than the bound are let in where nothing waits, as otherwise they
        never were.
        """
        own, ahead = self._waiting[level] + self._kept[level], self.ahead(level)
        return bool(own and own + pictures > policy.bound(level)) or bool(
            ahead and ahead + pictures > policy.max_queue
        )

    def full(self, policy: BatchPolicy) -> bool:
        """Tell whether one picture more is too many at every level."""
        return all(self.exceeds(policy, level, 1) for level in range(len(self._items)))

    def keep(self, level: int, pictures: int) -> Places:
        """Keep places for so many pictures."""
        self._kept[level] += pictures
        return Places(queue=self, level=level, left=pictures)

    def give_back(self, places: Places) -> None:
        """Give back the places that no picture took."""
        self._kept[places.level] -= places.left
        places.left = 0

    def put(self, places: Places, item: Item) -> None:
        """Put an item on as many of the places kept as it has pictures."""
        places.left -= item.pictures
        self._kept[places.level] -= item.pictures
        self._waiting[places.level] += item.pictures
        self._items[places.level].append(item)

    def oldest(self) -> float:
        """Return the arrival of the item that has waited longest; there must be one."""
        return min(items[0].arrival for items in self._items if items)

    def drop_dead(self, now: float) -> list[Item]:
        """Take out what was cancelled, and what is too late at `now`; return the latter."""
        dead = [
            item
            for item in self
            if item.future.done() or (item.deadline is not None and item.deadline <= now)
        ]
        self._remove(dead)
        return [item for item in dead if not item.future.done()]

    def take(
        self, policy: BatchPolicy, *, idle: int = 1, lanes: int = 1, picture_seconds: float = 0.0
    ) -> list[Item]:
        """Take out a batch for one of so many lanes, of which so many are idle.

        It holds items that want the outputs of the first, in their order, the
        first however many pictures it has. A picture takes `picture_seconds`, 0
        if that is unknown.
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
        """Iterate over the items in the order in which they are to run."""
        return chain.from_iterable(self._items)
