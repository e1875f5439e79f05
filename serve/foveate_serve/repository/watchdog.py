"""Detects a run of an engine that hangs."""

import asyncio
import time
from collections.abc import Callable, Sequence

from foveate_runtime.backends.base import Runner

_CHECKS = 4
"""The checks within one `limit`."""

_LONGEST_INTERVAL = 1.0


class Watchdog:
    """Calls `on_hang` with True once a run has taken `limit` seconds, and with False when it ends.

    A thread in an engine cannot be stopped, so the watchdog only reports. `limit` 0
    turns it off. Made within a running event loop, on which it calls `on_hang`.
    """

    def __init__(
        self, runners: Sequence[Runner], limit: float, on_hang: Callable[[bool], None]
    ) -> None:
        self._runners = tuple(runners)
        self._limit = limit
        self._on_hang = on_hang
        self._reported = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        if limit:
            self._check()

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        now = time.monotonic()
        starts = [runner.running_since for runner in self._runners]
        hung = any(start is not None and now - start >= self._limit for start in starts)
        if hung is not self._reported:
            self._reported = hung
            self._on_hang(hung)
        pause = min(self._limit / _CHECKS, _LONGEST_INTERVAL)
        self._timer = self._loop.call_later(pause, self._check)
