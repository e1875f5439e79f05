"""A loaded bundle with its runners and its batcher."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property

from foveate_runtime.backends.base import Runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.trust.answer import Assessor
from foveate_runtime.trust.drift import DriftWatch
from foveate_serve.batching.batcher import Batcher
from foveate_serve.batching.pacing import Pace
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.observer import BatchRun
from foveate_serve.repository.idling import IdleTrimmer
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

    `name` and `version` are the bundle's; `runner` is the first of the runners.
    `on_hang` is called with True once a run has taken `run_limit` seconds, and with
    False when that run ends after all. `on_batch` and `on_alive` as in Batcher.
    """

    def __init__(
        self,
        bundle: Bundle,
        runners: Sequence[Runner],
        policy: BatchPolicy,
        pace: Pace,
        *,
        on_batch: Callable[[BatchRun], None],
        on_alive: Callable[[bool], None],
        run_limit: float,
        on_hang: Callable[[bool], None],
    ) -> None:
        self.bundle = bundle
        self.name, self.version = bundle.manifest.name, str(bundle.manifest.version)
        self.runners = tuple(runners)
        self.runner = runners[0]
        self._on_batch = on_batch
        self._idle_trimmer = IdleTrimmer(runners)
        self.batcher = Batcher(
            runners,
            policy,
            pace,
            name=f"{self.name}/{self.version}",
            on_batch=self._on_run_end,
            on_alive=on_alive,
        )
        self._users = Users()
        self._on_hang = on_hang
        self._hung = asyncio.Event()
        self._watchdog = Watchdog(runners, run_limit, self._on_engine_hang)

    @cached_property
    def assessor(self) -> Assessor | None:
        """What assesses the answers of the variant that serves; None where it is uncalibrated."""
        manifest = self.bundle.manifest
        trust = manifest.variant(self.runner.variant).trust
        return None if trust is None else Assessor(trust, manifest.policy, manifest.scores)

    @cached_property
    def drift(self) -> DriftWatch | None:
        """What watches the answers of the variant that serves; None where it has no reference."""
        manifest = self.bundle.manifest
        trust = manifest.variant(self.runner.variant).trust
        if trust is None or not trust.drift or self.assessor is None:
            return None
        return DriftWatch(self.assessor, trust.drift, manifest.scores)

    def _on_run_end(self, run: BatchRun) -> None:
        self._idle_trimmer.on_run()
        self._on_batch(run)

    def _on_engine_hang(self, hung: bool) -> None:
        if hung:
            self._hung.set()
        else:
            self._hung.clear()
        self.batcher.set_hung(hung)
        self._on_hang(hung)

    def in_use(self) -> AbstractContextManager[None]:
        """Keep the model open until the block ends."""
        return self._users

    @property
    def idle(self) -> bool:
        """Whether no request uses the model."""
        return not self._users.count

    async def close(self) -> None:
        """Wait until the model is not in use, then release its engine, unless that hangs."""
        await self._users.wait_until_none()
        closing = asyncio.create_task(self.batcher.close())
        hung = asyncio.create_task(self._hung.wait())
        await asyncio.wait((closing, hung), return_when=asyncio.FIRST_COMPLETED)
        self._watchdog.close()
        await self._idle_trimmer.close()
        hung.cancel()
        if not closing.done():
            # The memory of an engine must not be freed during one of its runs.
            closing.cancel()
            logger.error("an engine of %s hangs and is not released", self.name)
            return
        await closing
        close_all(self.runners)
