"""The pictures that wait for a model: by priority, bounded, and gone once nobody wants them."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate_serve.policy import BatchPolicy


@dataclass(kw_only=True, slots=True)
class Places:
    """Places in the queue of one level, kept for pictures on their way there."""

    level: int
    left: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Item:
    """A picture, uint8 [height, width, channels], and the future of whoever waits for it.

    `class_ids` are those that the maps among `outputs` explain; `deadline` and
    `arrival` are times of `time.monotonic`.
    """

    image: NDArray[np.uint8]
    class_ids: NDArray[np.int64]
    outputs: tuple[str, ...]
    deadline: float | None
    future: asyncio.Future[Any]
    arrival: float = field(default_factory=time.monotonic)


class Queue:
    """Items by level, 0 the highest, and the places kept for pictures that are still decoded.

    It has no lock: what takes items out, or puts them in, is called by one
    thread at a time.
    """

    def __init__(self, levels: int) -> None:
        self._items: list[deque[Item]] = [deque() for _ in range(levels)]
        self._kept = [0] * levels

    @property
    def waiting(self) -> int:
        """How many pictures wait for a batch."""
        return sum(map(len, self._items))

    @property
    def expected(self) -> int:
        """How many pictures wait or have a place."""
        return self.waiting + sum(self._kept)

    def ahead(self, level: int) -> int:
        """Return how many pictures wait or have a place at a level or above."""
        return sum(map(len, self._items[: level + 1])) + sum(self._kept[: level + 1])

    def exceeds(self, policy: BatchPolicy, level: int, pictures: int) -> bool:
        """Tell whether so many pictures more at one level are too many.

        More than the bound are let in where nothing waits, as otherwise they
        never were.
        """
        own, ahead = len(self._items[level]) + self._kept[level], self.ahead(level)
        return bool(own and own + pictures > policy.bound(level)) or bool(
            ahead and ahead + pictures > policy.max_queue
        )

    def full(self, policy: BatchPolicy) -> bool:
        """Tell whether one picture more is too many at every level."""
        return all(self.exceeds(policy, level, 1) for level in range(len(self._items)))

    def keep(self, level: int, pictures: int) -> Places:
        """Keep places for so many pictures."""
        self._kept[level] += pictures
        return Places(level=level, left=pictures)

    def give_back(self, places: Places) -> None:
        """Give back the places that no picture took."""
        self._kept[places.level] -= places.left
        places.left = 0

    def put(self, places: Places, item: Item) -> None:
        """Put an item on one of the places kept."""
        places.left -= 1
        self._kept[places.level] -= 1
        self._items[places.level].append(item)

    def oldest(self) -> float:
        """Return the arrival of the item that has waited longest; there must be one."""
        return min(items[0].arrival for items in self._items if items)

    def drop_dead(self, now: float) -> list[Item]:
        """Take out what was cancelled, and what is too late at `now`; return the latter."""
        late: list[Item] = []
        for level, items in enumerate(self._items):
            alive: deque[Item] = deque()
            for item in items:
                if item.future.done():
                    continue
                if item.deadline is not None and item.deadline <= now:
                    late.append(item)
                else:
                    alive.append(item)
            self._items[level] = alive
        return late

    def take(
        self, policy: BatchPolicy, *, idle: int = 1, lanes: int = 1, picture_seconds: float = 0.0
    ) -> list[Item]:
        """Take out a batch for one of so many lanes, of which so many are idle.

        It holds items that want the outputs of the first, in their order. A
        picture takes `picture_seconds`, 0 if that is unknown.
        """
        most = policy.share(self.waiting, idle=idle, lanes=lanes, picture_seconds=picture_seconds)
        same: list[Item] = []
        for item in self:
            if not same or item.outputs == same[0].outputs:
                same.append(item)
                if len(same) == most:
                    break
        batch = same[: policy.size(len(same))]
        taken = set(batch)
        for level, items in enumerate(self._items):
            self._items[level] = deque(item for item in items if item not in taken)
        return batch

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the items in the order in which they are to run."""
        return chain.from_iterable(self._items)
