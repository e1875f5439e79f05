"""One worker: a process that serves beside others on the same address.

Started by the supervisor, which sends the `Assignment` as a line of JSON on
stdin, and keeps stdin open for as long as it lives.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from pydantic import BaseModel

from foveate_runtime.cores import deal_cores
from foveate_serve.errors import ServeError
from foveate_serve.heap import bound_heap
from foveate_serve.observe.logs import configure_logging
from foveate_serve.process import (
    HungError,
    KilledError,
    Process,
    StartError,
    leave_at_once,
    run_until_signals,
)
from foveate_serve.repository.versions import State
from foveate_serve.rpc.server import AddressError
from foveate_serve.settings import Settings, SettingsError
from foveate_serve.workers.peers import (
    Peers,
    PeerServer,
    SharedRepositoryHandler,
    served_by,
)

logger = logging.getLogger(__name__)

DONE, FAILED = 0, 1

_SAMPLE_SECONDS = 1.0
"""How often the values that are read, and not counted, are written for the supervisor."""


class Assignment(BaseModel):
    """What the supervisor tells a worker: its settings, secrets and all, and its place."""

    settings: dict[str, Any]
    folder: Path
    index: int


class Worker(Process):
    """The services of one worker."""

    def __init__(self, settings: Settings, folder: Path, index: int) -> None:
        self._peers = Peers(folder)
        self._index = index
        super().__init__(settings)
        self._peer_server = PeerServer(self._engine, self._peers.socket(index))

    def _repository_handler(self) -> SharedRepositoryHandler:
        return SharedRepositoryHandler(
            self._engine.repository,
            self._peers,
            enabled=self._settings.admin,
            polled=self._polled,
        )

    @asynccontextmanager
    async def _beside(self) -> AsyncIterator[None]:
        sampling = asyncio.create_task(self._sample())
        try:
            yield
        finally:
            sampling.cancel()
            await self._peer_server.stop()

    async def _sample(self) -> None:
        while self._metrics is not None:
            self._metrics.sample(self._engine.repository)
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def _over(self, stop: asyncio.Event) -> None:
        """Wait until the process is to end: when it is told to, or when an engine hangs."""
        stopped = asyncio.create_task(stop.wait())
        while not (stopped.done() or self._engine.repository.hung):
            changed = asyncio.create_task(self._changes.next().wait())
            await asyncio.wait((stopped, changed), return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        stopped.cancel()

    async def _opened(self, stop: asyncio.Event) -> bool:
        if not await super()._opened(stop):
            return False
        await self._peer_server.start()
        for socket in self._peers.others(self._index):
            try:
                await self._follow(socket)
            except grpc.aio.AioRpcError as error:
                logger.warning("worker %s did not answer: %s", socket.stem, error.code().name)
            else:
                break
        return True

    async def _follow(self, socket: Path) -> None:
        """Serve what a peer serves, and nothing else: it may have been told to change."""
        served, repository = await served_by(socket), self._engine.repository
        ours = {
            (model.name, str(version.version))
            for model in repository.models()
            for version in model.versions
            if version.state is State.READY
        }
        for name, version in sorted(served.versions - ours):
            try:
                await repository.load(name, version)
            except ServeError as error:
                logger.warning("a peer serves version %s of %s: %s", version, name, error)
        for name, version in sorted(ours - served.versions):
            await repository.unload(name, version)
        for name, labels in served.labels.items():
            repository.take_labels(name, labels)


def main() -> int:
    """Serve as the line on stdin says; return the exit code."""
    assignment = Assignment.model_validate_json(sys.stdin.readline())
    settings = Settings(**assignment.settings)
    configure_logging(settings)
    if any(settings.of(model).pin_cores for model in ("", *settings.models)):
        # What the instances then share out is this worker's own.
        os.sched_setaffinity(0, deal_cores(settings.workers)[assignment.index])
    bound_heap()
    threading.Thread(target=_stop_with_the_supervisor, daemon=True).start()
    try:
        asyncio.run(_serve(assignment, settings))
    except HungError as error:
        leave_at_once(str(error))
    except (SettingsError, AddressError, StartError, KilledError) as error:
        print(f"foveate serve: {error}", file=sys.stderr)
        return FAILED
    return DONE


async def _serve(assignment: Assignment, settings: Settings) -> None:
    worker = Worker(settings, assignment.folder, assignment.index)
    await run_until_signals(worker, _tell)


def _tell(models: int, address: str) -> None:
    print(json.dumps({"models": models, "address": address}), flush=True)


def _stop_with_the_supervisor() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
