"""Deadlines of many requests for the price of a few timers."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

_TICK_SECONDS = 0.02
"""Those who are due within one share a timer, and are told at its end."""

_EXACT_SECONDS = 0.5
"""What is due sooner has a timer of its own: a tick would be a part of it."""


class Timer(Protocol):
    """What was put off, and need not come."""

    def cancel(self) -> None:
        """Forget it."""


class Deadlines:
    """Calls functions once their times have come, on the running event loop.

    Nearly every request is answered long before it is due, and a timer of the
    loop for each is pushed into a heap, and later sorted out of it, in vain.
    """

    def __init__(self) -> None:
        self._ticks: dict[int, set[_Entry]] = {}

    def at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call a function at a time of `time.monotonic`, or up to 20 ms later."""
        loop = asyncio.get_running_loop()
        if when - loop.time() < _EXACT_SECONDS:
            return loop.call_at(when, callback)
        tick = int(when / _TICK_SECONDS) + 1
        entries = self._ticks.get(tick)
        if entries is None:
            entries = self._ticks[tick] = set()
            loop.call_at(tick * _TICK_SECONDS, self._expire, tick)
        entry = _Entry(entries, callback)
        entries.add(entry)
        return entry

    def _expire(self, tick: int) -> None:
        for entry in list(self._ticks.pop(tick)):
            entry.callback()


class _Entry:
    __slots__ = ("_others", "callback")

    def __init__(self, others: "set[_Entry]", callback: Callable[[], None]) -> None:
        self._others = others
        self.callback = callback

    def cancel(self) -> None:
        self._others.discard(self)


class Within(AbstractContextManager[None]):
    """A task's block that is cancelled when its time has come, and then raises TimeoutError.

    As `asyncio.timeout_at`; `when` None never comes.
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
                raise RuntimeError("a deadline is for a task")
            self._cancelling = self._task.cancelling()
            self._timer = self._deadlines.at(self._when, self._expire)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if (
            self._expired
            and self._task is not None
            # Whoever waits for the task may have cancelled it at the same time.
            and self._task.uncancel() <= self._cancelling
            and isinstance(error, asyncio.CancelledError)
        ):
            raise TimeoutError from error

    def _expire(self) -> None:
        self._expired = True
        if self._task is not None:
            self._task.cancel()
