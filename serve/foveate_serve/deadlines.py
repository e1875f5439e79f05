"""Deadlines of many requests, which share a few timers."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

_TICK_SECONDS = 0.02
"""Deadlines within one tick share a timer, which fires at the end of the tick."""

_EXACT_SECONDS = 0.5
"""A sooner deadline has a timer of its own: a tick would be a large part of it."""


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Cancel the call."""


class Deadlines:
    """Calls functions at their times, on the running event loop.

    Nearly every request is answered long before its deadline. A timer of the event
    loop for each would be pushed into a heap and removed from it for nothing.
    """

    def __init__(self) -> None:
        self._ticks: dict[int, _Tick] = {}

    def at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call a function at a time of `time.monotonic`, or up to 20 ms later."""
        loop = asyncio.get_running_loop()
        if when - loop.time() < _EXACT_SECONDS:
            return loop.call_at(when, callback)
        tick = int(when / _TICK_SECONDS) + 1
        due = self._ticks.get(tick)
        if due is None:
            due = self._ticks[tick] = _Tick(self._ticks, tick)
        entry = _Entry(due, callback)
        due.entries.add(entry)
        return entry


class _Tick:
    """The calls that are due within one tick, and their timer."""

    def __init__(self, ticks: "dict[int, _Tick]", number: int) -> None:
        self.entries: set[_Entry] = set()
        self._ticks = ticks
        self._number = number
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(number * _TICK_SECONDS, self._expire)

    def discard(self, entry: "_Entry") -> None:
        self.entries.discard(entry)
        # Or a client that sets many distant deadlines would leave a timer for each.
        if not self.entries and self._ticks.get(self._number) is self:
            del self._ticks[self._number]
            self._timer.cancel()

    def _expire(self) -> None:
        del self._ticks[self._number]
        for entry in list(self.entries):
            # A callback may have cancelled another entry.
            if entry in self.entries:
                entry.callback()


class _Entry:
    __slots__ = ("_tick", "callback")

    def __init__(self, tick: _Tick, callback: Callable[[], None]) -> None:
        self._tick = tick
        self.callback = callback

    def cancel(self) -> None:
        self._tick.discard(self)


class Within(AbstractContextManager[None]):
    """Cancels its `with` block at a deadline, and then raises TimeoutError.

    Like `asyncio.timeout_at`. `when` None is no deadline. The block runs in a task.
    """

    def __init__(self, deadlines: Deadlines, when: float | None) -> None:
        self._deadlines = deadlines
        self._when = when
        self._task: asyncio.Task[object] | None = None
        self._timer: Timer | None = None
        self._expired = False
        self._cancelling = 0

    def __enter__(self) -> None:
        if self._when is not None:
            self._task = asyncio.current_task()
            if self._task is None:
                raise RuntimeError("a deadline needs a task to cancel")
            self._cancelling = self._task.cancelling()
            self._timer = self._deadlines.at(self._when, self._expire)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # breaks the reference cycle
        if (
            self._expired
            and self._task is not None
            # The task may also have been cancelled from outside.
            and self._task.uncancel() <= self._cancelling
            and isinstance(error, asyncio.CancelledError)
        ):
            raise TimeoutError from error

    def _expire(self) -> None:
        self._expired = True
        if self._task is not None:
            self._task.cancel()
