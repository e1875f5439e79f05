"""Notices an engine that does not come back from a run."""

import asyncio
import time
from collections.abc import Callable, Sequence

from foveate_runtime.backends.base import Runner

_LOOKS = 4
"""So often the watchdog looks while a run takes as long as it may."""

_LONGEST_PAUSE = 1.0


class Watchdog:
    """Calls `hangs` with True once a run has taken `limit` seconds, and with False when it ends.

    A thread in an engine cannot be stopped, so that there is no more to do than
    to know. `limit` 0 watches nothing. Made within a running event loop, on
    which `hangs` is called.
    """

    def __init__(
        self, runners: Sequence[Runner], limit: float, hangs: Callable[[bool], None]
    ) -> None:
        self._runners = tuple(runners)
        self._limit = limit
        self._hangs = hangs
        self._told = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        if limit:
            self._look()

    def close(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = time.monotonic()
        starts = [runner.running_since for runner in self._runners]
        hung = any(start is not None and now - start >= self._limit for start in starts)
        if hung is not self._told:
            self._told = hung
            self._hangs(hung)
        pause = min(self._limit / _LOOKS, _LONGEST_PAUSE)
        self._timer = self._loop.call_later(pause, self._look)
