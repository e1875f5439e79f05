"""Gives memory back once a model has had nothing to do for a while."""

import asyncio
import logging
from collections.abc import Sequence

from foveate_runtime.backends.base import Runner
from foveate_serve.heap import trim_heap

logger = logging.getLogger(__name__)

IDLE_SECONDS = 10.0
"""A pause of this length between two runs may well go on."""


class Idling:
    """Trims `runners` and the heap `IDLE_SECONDS` after the last of their runs.

    What they give back the next large batch takes again, which costs it some
    milliseconds. Made within a running event loop, and used from it.
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners = tuple(runners)
        self._loop = asyncio.get_running_loop()
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._trimming: asyncio.Future[None] | None = None

    def ran(self) -> None:
        """Hear of a run that has ended."""
        self._last = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_SECONDS, self._look)

    async def close(self) -> None:
        """Trim no longer."""
        if self._timer is not None:
            self._timer.cancel()
        if self._trimming is not None:
            await self._trimming

    def _look(self) -> None:
        idle = self._loop.time() - self._last
        if idle < IDLE_SECONDS:
            self._timer = self._loop.call_later(IDLE_SECONDS - idle, self._look)
            return
        self._timer = None
        self._trimming = self._loop.run_in_executor(None, self._trim)

    def _trim(self) -> None:
        for runner in self._runners:
            try:
                runner.trim()
            except Exception:
                logger.exception("an engine could not give memory back")
        trim_heap()
