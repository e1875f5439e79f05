"""One worker: a process that shares its address with others.

The supervisor starts it with the number of a socket, over which it sends the
`Assignment` as a line of JSON, and which it keeps open while it runs. The worker
sends a line of JSON over it once it serves. Standard input and output are not used:
libraries may print to them.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from pydantic import BaseModel

from foveate_runtime.cores import deal_cores
from foveate_serve.errors import ServeError
from foveate_serve.figures import Figures
from foveate_serve.heap import bound_heap
from foveate_serve.observe.logs import configure_logging
from foveate_serve.process import (
    HungError,
    KilledError,
    Process,
    StartError,
    exit_at_once,
    run_until_signals,
)
from foveate_serve.rpc.server import AddressError
from foveate_serve.settings import Settings, SettingsError
from foveate_serve.workers.peers import (
    FIGURES,
    Peers,
    PeerServer,
    SharedRepositoryHandler,
    served_by,
)

logger = logging.getLogger(__name__)

DONE, FAILED = 0, 1

_SAMPLE_SECONDS = 1.0
"""The interval at which the gauges are written for the supervisor."""


class Assignment(BaseModel):
    """The supervisor's message to a worker: its settings with their secrets, and its number."""

    settings: dict[str, Any]
    folder: Path
    index: int


class Worker(Process):
    """The services of one worker."""

    def __init__(self, settings: Settings, folder: Path, index: int) -> None:
        self._peers = Peers(folder)
        self._index = index
        super().__init__(settings, Figures(folder / FIGURES))
        self._peer_server = PeerServer(
            self._engine,
            self._peers.socket(index),
            health=self._server.health,
            transport=settings.transport,
        )

    def _repository_handler(self) -> SharedRepositoryHandler:
        return SharedRepositoryHandler(
            self._engine.repository,
            self._peers,
            enabled=self._settings.admin,
            polled=self._polled,
        )

    @asynccontextmanager
    async def _side_services(self) -> AsyncIterator[None]:
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

    async def _wait_for_end(self, stop: asyncio.Event) -> None:
        """Wait until `stop` is set or an engine hangs."""
        stopped = asyncio.create_task(stop.wait())
        while not (stopped.done() or self._engine.repository.hung):
            changed = asyncio.create_task(self._changes.next().wait())
            await asyncio.wait((stopped, changed), return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        stopped.cancel()

    async def _open(self) -> None:
        await super()._open()
        await self._peer_server.start()
        for peer in self._peers.others(self._index):
            try:
                await self._match_peer(peer)
            except grpc.aio.AioRpcError as error:
                logger.warning("worker %s did not answer: %s", peer.stem, error.code().name)
            else:
                break

    async def _match_peer(self, peer: Path) -> None:
        """Load and unload, to serve what a peer serves: clients may have changed its models."""
        served, repository = await served_by(peer), self._engine.repository
        ours = {
            (model.name, str(version.version))
            for model in repository.models()
            for version in model.versions
            if version.state.answers
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
    """Run a worker with the supervisor's assignment; return the exit code."""
    supervisor = socket.socket(fileno=int(sys.argv[1]))
    supervisor.set_inheritable(False)
    with supervisor.makefile("rb") as lines:
        assignment = Assignment.model_validate_json(lines.readline())
    settings = Settings(**assignment.settings)
    configure_logging(settings)
    if any(settings.of(model).pin_cores for model in ("", *settings.models)):
        # The instances then share this worker's cores.
        os.sched_setaffinity(0, deal_cores(settings.workers)[assignment.index])
    bound_heap()
    threading.Thread(target=_stop_when_closed, args=(supervisor,), daemon=True).start()
    try:
        asyncio.run(_serve(assignment, settings, supervisor))
    except (SettingsError, AddressError, StartError) as error:
        print(f"foveate serve: {error}", file=sys.stderr)
        return FAILED
    return DONE


async def _serve(assignment: Assignment, settings: Settings, supervisor: socket.socket) -> None:
    def ready(models: int, address: str) -> None:
        # Where the supervisor has ended, this worker is stopping already.
        with suppress(OSError):
            supervisor.sendall(json.dumps({"models": models, "address": address}).encode() + b"\n")

    worker = Worker(settings, assignment.folder, assignment.index)
    try:
        await run_until_signals(worker, ready)
    except (HungError, KilledError) as error:
        exit_at_once(error)


def _stop_when_closed(supervisor: socket.socket) -> None:
    with suppress(OSError):
        supervisor.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
