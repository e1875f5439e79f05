"""One process that serves: its engine, its gRPC server, and what operators see of them."""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn, Protocol

from foveate_serve.access import make_access_control
from foveate_serve.assembly import make_engine
from foveate_serve.observe.http import HttpServer
from foveate_serve.observe.metrics import Metrics
from foveate_serve.observe.pages import Pages
from foveate_serve.observe.source import ServerSource
from foveate_serve.observer import Changes, Observer, Observers
from foveate_serve.rpc.handlers import RepositoryHandler
from foveate_serve.rpc.interceptor import CallObserver
from foveate_serve.rpc.server import AddressError, Server
from foveate_serve.settings import Settings, SettingsError
from foveate_serve.statistics import Statistics

if TYPE_CHECKING:
    from foveate_serve.observe.tracing import Tracing

logger = logging.getLogger(__name__)

Ready = Callable[[int, str], None]
"""Is told how many models serve, and on which address."""


class StartError(Exception):
    """The server cannot start; the message says why."""


class KilledError(Exception):
    """A second signal stopped the server before the requests in flight were answered."""


class HungError(Exception):
    """The server has stopped, and the thread of an engine still runs: see `leave_at_once`."""


class Service(Protocol):
    """What runs until it is told to stop."""

    async def run(self, stop: asyncio.Event, ready: Ready) -> None:
        """Serve until `stop` is set, then finish what is in flight."""
        ...

    async def abort(self) -> None:
        """Stop at once."""
        ...


class Process:
    """The services of one process, put together from its settings; raises SettingsError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._changes = changes = Changes()
        statistics = Statistics()
        observers: list[Observer] = [statistics, changes]
        call_observers: list[CallObserver] = []
        self._metrics = None if settings.metrics_address is None else Metrics()
        if self._metrics is not None:
            observers.append(self._metrics)
            call_observers.append(self._metrics.call)
        self._tracing = load_tracing() if settings.tracing else None
        if self._tracing is not None:
            observers.append(self._tracing)
            call_observers.append(self._tracing.call)
        self._access = make_access_control(settings)
        self._engine = make_engine(settings, Observers(observers))
        self._server = Server(
            self._engine,
            settings,
            changes,
            statistics,
            self._repository_handler(),
            access=self._access,
            observers=call_observers,
        )

    async def run(self, stop: asyncio.Event, ready: Ready) -> None:
        """Serve until `stop` is set, then finish what is in flight.

        Raises AddressError, SettingsError where the files of TLS are bad, and
        StartError where there is nothing to serve, and HungError where an engine
        did not come back from a run or a load.
        """
        stuck = False
        async with self._beside():
            address = await self._server.start()
            problem = None
            if await self._opened(stop):
                models = self._engine.repository.models()
                serving = sum(model.default_version is not None for model in models)
                if serving or self._settings.admin or self._polled:
                    # What has been loaded stays: no collection need look at it again.
                    gc.freeze()
                    self._server.ready()
                    ready(serving, address)
                    async with self._following_the_folder():
                        await self._over(stop)
                    stuck = self._engine.repository.stuck
                else:
                    problem = StartError("repository: it holds no model that can be loaded")
            await self._server.drain()
            await self._engine.close()
            stuck = stuck or self._engine.repository.stuck
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        if stuck:
            raise HungError(str(problem or "stopped, though an engine had not come back"))
        if problem is not None:
            raise problem

    async def abort(self) -> None:
        """Stop at once; what is in flight is not answered."""
        await self._server.abort()

    async def _over(self, stop: asyncio.Event) -> None:
        """Wait until the process is to end."""
        await stop.wait()

    async def _opened(self, stop: asyncio.Event) -> bool:
        """Load the models; return whether that ended before `stop` was set."""
        load = self._settings.repository_mode != "explicit"
        opening = asyncio.create_task(self._engine.repository.open(load=load))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((opening, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not opening.done():
            opening.cancel()
            return False
        try:
            await opening
        except OSError as error:
            raise StartError(f"repository: {error.strerror}") from error
        return True

    def _repository_handler(self) -> RepositoryHandler:
        return RepositoryHandler(
            self._engine.repository, enabled=self._settings.admin, polled=self._polled
        )

    @property
    def _polled(self) -> bool:
        return self._settings.repository_mode == "poll"

    @asynccontextmanager
    async def _following_the_folder(self) -> AsyncIterator[None]:
        """Look at the repository's folder again and again, where the mode is poll."""
        if not self._polled:
            yield
            return
        polling = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            polling.cancel()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_interval)
            try:
                await self._engine.repository.poll()
            except OSError as error:
                logger.error("the repository cannot be read: %s", error.strerror)  # noqa: TRY400

    @asynccontextmanager
    async def _beside(self) -> AsyncIterator[None]:
        """Run what there is beside the services: here, the metrics port."""
        if self._metrics is None:
            yield
            return
        source = ServerSource(self._engine.repository, self._metrics, self._server)
        async with serving_pages(Pages(source, self._settings, self._access), self._settings):
            yield


@asynccontextmanager
async def serving_pages(pages: Pages, settings: Settings) -> AsyncIterator[None]:
    """Answer HTTP on the metrics address; raises AddressError."""
    address = settings.metrics_address or ""
    server = HttpServer(address, pages.respond)
    try:
        bound = await server.start()
    except OSError as error:
        raise AddressError(f"cannot listen on {address}") from error
    logger.info("metrics and status on http://%s", bound)
    try:
        yield
    finally:
        await server.stop()


async def run_until_signals(service: Service, ready: Ready) -> None:
    """Run until SIGINT or SIGTERM; a second signal stops at once and raises KilledError."""
    stop, kill = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (kill if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    running = asyncio.create_task(service.run(stop, ready))
    killed = asyncio.create_task(kill.wait())
    await asyncio.wait((running, killed), return_when=asyncio.FIRST_COMPLETED)
    killed.cancel()
    if running.done():
        await running
        return
    await service.abort()
    running.cancel()
    raise KilledError("stopped before the requests in flight were answered")


def leave_at_once(message: str) -> NoReturn:
    """End the process without waiting for its threads, of which one does not end."""
    print(f"foveate serve: {message}", file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(1)


def load_tracing() -> "Tracing":
    """Return the traces; raises SettingsError where OpenTelemetry is not installed."""
    try:
        module = import_module("foveate_serve.observe.tracing")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise SettingsError(
            'tracing: it needs OpenTelemetry: pip install "foveate-serve[tracing]"'
        ) from error
    tracing: Tracing = module.make_tracing()
    return tracing
