"""Answers that need no engine: those kept from earlier requests, and those on their way."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """Keeps values of at most `max_bytes` together; those used longest ago go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self.size = 0

    def get(self, key: Hashable) -> T | None:
        """Return what is kept under `key`, None where nothing is."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: T, size: int) -> None:
        """Keep a value of `size` bytes, unless it alone is larger than the cache."""
        if size > self._max_bytes:
            return
        _, before = self._values.pop(key, (None, 0))
        self._values[key] = value, size
        self.size += size - before
        while self.size > self._max_bytes:
            _, (_, freed) = self._values.popitem(last=False)
            self.size -= freed


@dataclass(kw_only=True, slots=True, eq=False)
class _Flight(Generic[T]):
    task: asyncio.Future[T]
    waiting: int = 0


class Flights(Generic[T]):
    """Work that several callers wait for. Used from one event loop.

    It belongs to none of them: one who leaves takes nothing from the others,
    and when the last has left it is cancelled.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    async def join(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Return what the work under `key` gives; `work` starts it where there is none."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(task=asyncio.ensure_future(work()))
            flight.task.add_done_callback(partial(self._landed, key, flight))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                # Nobody may join what is about to be cancelled.
                del self._flights[key]
                flight.task.cancel()

    def _landed(self, key: Hashable, flight: _Flight[T], task: asyncio.Future[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not task.cancelled():
            # An error that everybody has left behind is no news.
            task.exception()
