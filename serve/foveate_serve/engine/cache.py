"""Answers without a run of their own: a cache, and sharing the run of an identical request."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """Holds values of at most `max_bytes` together; the least recently used are evicted first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self.size = 0

    def get(self, key: Hashable) -> T | None:
        """Return the value of `key`, None where there is none."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: T, size: int) -> None:
        """Store a value of `size` bytes, unless it alone is larger than the cache."""
        if size > self._max_bytes:
            return
        _, before = self._values.pop(key, (None, 0))
        self._values[key] = value, size
        self.size += size - before
        while self.size > self._max_bytes:
            _, (_, freed) = self._values.popitem(last=False)
            self.size -= freed


@dataclass(kw_only=True, slots=True, eq=False)
class _SharedTask(Generic[T]):
    task: asyncio.Future[T]
    waiting: int = 0


class SingleFlight(Generic[T]):
    """Runs work once for all callers that wait for it at one time. Used from one event loop.

    A caller that is cancelled does not affect the others. The work is cancelled with
    its last caller.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _SharedTask[T]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    async def join(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Return the result of the work under `key`; `work` starts it where none is in flight."""
        shared = self._flights.get(key)
        if shared is None:
            shared = self._flights[key] = _SharedTask(task=asyncio.ensure_future(work()))
            shared.task.add_done_callback(partial(self._on_done, key, shared))
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                # No caller may join work that is about to be cancelled.
                del self._flights[key]
                shared.task.cancel()

    def _on_done(self, key: Hashable, shared: _SharedTask[T], task: asyncio.Future[T]) -> None:
        if self._flights.get(key) is shared:
            del self._flights[key]
        if not task.cancelled():
            # Marks an error as seen where no caller is left, or asyncio would log it.
            task.exception()
