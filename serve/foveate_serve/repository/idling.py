"""Returns memory to the system while a model is idle."""

import asyncio
import logging
from collections.abc import Sequence

from foveate_runtime.backends.base import Runner
from foveate_serve.heap import trim_heap

logger = logging.getLogger(__name__)

IDLE_SECONDS = 10.0
"""A model without a run for so long counts as idle."""


class IdleTrimmer:
    """Trims `runners` and the heap `IDLE_SECONDS` after the last of their runs.

    The next large batch allocates the memory again, which costs it some milliseconds.
    Made within a running event loop, and used from it.
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners = tuple(runners)
        self._loop = asyncio.get_running_loop()
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._trimming: asyncio.Future[None] | None = None

    def on_run(self) -> None:
        """Start the idle time again: a run has ended."""
        self._last = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_SECONDS, self._check)

    async def close(self) -> None:
        """Stop trimming."""
        if self._timer is not None:
            self._timer.cancel()
        if self._trimming is not None:
            await self._trimming

    def _check(self) -> None:
        idle = self._loop.time() - self._last
        if idle < IDLE_SECONDS:
            self._timer = self._loop.call_later(IDLE_SECONDS - idle, self._check)
            return
        self._timer = None
        self._trimming = self._loop.run_in_executor(None, self._trim)

    def _trim(self) -> None:
        for runner in self._runners:
            try:
                runner.trim()
            except Exception:
                logger.exception("an engine could not release its idle memory")
        trim_heap()
