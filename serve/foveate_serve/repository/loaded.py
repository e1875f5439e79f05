"""A bundle that serves."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from foveate_runtime.backends.base import Runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_serve.batching.batcher import Batcher
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.observer import BatchRun
from foveate_serve.repository.idling import Idling
from foveate_serve.repository.users import Users
from foveate_serve.repository.watchdog import Watchdog

logger = logging.getLogger(__name__)


def close_all(runners: Sequence[Runner]) -> None:
    """Release runners; one that cannot be released is logged."""
    for runner in runners:
        try:
            runner.close()
        except Exception:
            logger.exception("an engine could not be released")


class LoadedModel:
    """A bundle that serves: its runners, which are alike, and its batcher.

    `runner` is the first of them. `hangs` is called with True where a run has
    taken `run_limit` seconds, and with False when it has ended after all.
    """

    def __init__(
        self,
        bundle: Bundle,
        runners: Sequence[Runner],
        policy: BatchPolicy,
        *,
        ran: Callable[[BatchRun], None] | None = None,
        alive: Callable[[bool], None] | None = None,
        run_limit: float = 0.0,
        hangs: Callable[[bool], None] | None = None,
    ) -> None:
        self.bundle = bundle
        self.runners = tuple(runners)
        self.runner = runners[0]
        name = f"{bundle.manifest.name}/{bundle.manifest.version}"
        self._ran = ran
        self._idling = Idling(runners)
        self.batcher = Batcher(runners, policy, name=name, ran=self._has_run, alive=alive)
        self._users = Users()
        self._hangs = hangs
        self._hung = asyncio.Event()
        self._watchdog = Watchdog(runners, run_limit, self._engine_hangs)

    def _has_run(self, run: BatchRun) -> None:
        self._idling.ran()
        if self._ran is not None:
            self._ran(run)

    def _engine_hangs(self, hung: bool) -> None:
        if hung:
            self._hung.set()
        else:
            self._hung.clear()
        self.batcher.hangs(hung)
        if self._hangs is not None:
            self._hangs(hung)

    def in_use(self) -> AbstractContextManager[None]:
        """Keep the model open until the block ends."""
        return self._users

    async def close(self) -> None:
        """Wait until nobody uses the model, then release its engine, unless that hangs."""
        await self._users.gone()
        closing = asyncio.create_task(self.batcher.close())
        hung = asyncio.create_task(self._hung.wait())
        await asyncio.wait((closing, hung), return_when=asyncio.FIRST_COMPLETED)
        self._watchdog.close()
        await self._idling.close()
        hung.cancel()
        if not closing.done():
            # The memory of an engine must not be freed while one of its runs goes on.
            closing.cancel()
            logger.error("an engine of %s hangs and is left as it is", self.bundle.manifest.name)
            return
        await closing
        close_all(self.runners)
