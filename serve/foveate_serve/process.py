"""One serving process: its engine, its gRPC server, its metrics port and its shutdown."""

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn, Protocol

from foveate_serve.access import make_access_control
from foveate_serve.assembly import make_engine
from foveate_serve.figures import Figures
from foveate_serve.files import OneLine
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
    from foveate_serve.rest.server import RestServer

logger = logging.getLogger(__name__)

Ready = Callable[[int, str], None]
"""Called with the number of models that serve, and the address."""

CLOSE_SECONDS = 0.5
"""The time to release the engines, beyond the shutdown timeout of the requests in flight."""

_ABORT_SECONDS = 1.0


class StartError(Exception):
    """The server cannot start; the message says why."""


class KilledError(Exception):
    """A second signal stopped the server before the requests in flight were finished."""


class HungError(Exception):
    """The server has stopped, and one of its threads still runs: see `exit_at_once`.

    `code` is the exit code: 0 where no request was lost.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Service(Protocol):
    """What `run_until_signals` runs: a process or a supervisor."""

    async def run(self, stop: asyncio.Event, ready: Ready) -> None:
        """Serve until `stop` is set, then drain."""
        ...

    async def abort(self) -> None:
        """Stop at once."""
        ...


class Process:
    """The services of one process, put together from its settings; raises SettingsError.

    Its statistics are in `figures`, by default in its memory.
    """

    def __init__(self, settings: Settings, figures: Figures | None = None) -> None:
        self._settings = settings
        self._changes = changes = Changes()
        statistics = Statistics(figures)
        observers: list[Observer] = [statistics, changes]
        call_observers: list[CallObserver] = []
        self._metrics = None if settings.metrics_address is None else Metrics(statistics)
        if self._metrics is not None:
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
        self._http = (
            None if settings.http_address is None else load_http()(settings, self._server.services)
        )

    async def run(self, stop: asyncio.Event, ready: Ready) -> None:
        """Serve until `stop` is set, then drain.

        Raises:
            AddressError: the address cannot be listened on.
            SettingsError: the files of TLS are bad.
            StartError: there is nothing to serve.
            HungError: a thread does not end: of an engine that hangs, or of a load that
                takes longer than the shutdown timeout.
        """
        async with self._side_services(), self._http or nullcontext():
            address = await self._server.start()
            problem = await self._serve(stop, ready, address)
            hung = self._engine.repository.hung
            ended = await self._close()
        if hung or self._engine.repository.hung:
            raise HungError(str(problem or "stopped while a run of an engine hung"))
        if not ended:
            code = 0 if problem is None else 1
            raise HungError(
                str(problem or "stopped before a load, a run or a connection had ended"), code
            )
        if problem is not None:
            raise problem

    async def _serve(self, stop: asyncio.Event, ready: Ready, address: str) -> StartError | None:
        """Load the models and serve until `stop` is set; return why there is nothing to serve."""
        if not await self._open_unless_stopped(stop):
            return None
        repository = self._engine.repository
        serving = sum(model.default_version is not None for model in repository.models())
        if not (serving or self._settings.admin or self._polled):
            found = ("it holds no model that can be loaded", *repository.problems)
            return StartError(f"repository: {'; '.join(found)}")
        # The loaded objects stay: the garbage collector need not scan them again.
        gc.freeze()
        self._server.ready()
        ready(serving, address)
        async with self._polling():
            await self._wait_for_end(stop)
        return None

    async def _close(self) -> bool:
        """Drain and release the engines; return whether all of it ended within the timeout.

        A thread in an engine cannot be stopped: one that passes the timeout is left
        running.
        """
        settings = self._settings
        limit = settings.shutdown_delay + settings.shutdown_timeout + CLOSE_SECONDS
        try:
            async with asyncio.timeout(limit):
                await asyncio.gather(
                    self._server.drain(), *(() if self._http is None else (self._http.drain(),))
                )
                await self._engine.close()
                if self._tracing is not None:
                    await asyncio.to_thread(self._tracing.close)
        except TimeoutError:
            return False
        return not self._engine.repository.stuck

    async def abort(self) -> None:
        """Stop at once; abort the calls in flight."""
        if self._http is not None:
            self._http.abort()
        await self._server.abort()

    async def _wait_for_end(self, stop: asyncio.Event) -> None:
        """Wait until the process is to end."""
        await stop.wait()

    async def _open_unless_stopped(self, stop: asyncio.Event) -> bool:
        """Load the models; return whether that ended before `stop` was set."""
        opening = asyncio.create_task(self._open())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((opening, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not opening.done():
            opening.cancel()
            return False
        await opening
        return True

    async def _open(self) -> None:
        """Load the models; raises StartError where the repository cannot be read."""
        try:
            await self._engine.repository.open(load=self._settings.repository_mode != "explicit")
        except OSError as error:
            message = f"repository: {error.strerror}: {self._settings.repository}"
            raise StartError(message) from error

    def _repository_handler(self) -> RepositoryHandler:
        return RepositoryHandler(
            self._engine.repository, enabled=self._settings.admin, polled=self._polled
        )

    @property
    def _polled(self) -> bool:
        return self._settings.repository_mode == "poll"

    @asynccontextmanager
    async def _polling(self) -> AsyncIterator[None]:
        """Poll the repository's folder until the block ends, where the mode is poll."""
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
            except Exception:
                # The next scan may succeed.
                logger.exception("polling the repository failed")

    @asynccontextmanager
    async def _side_services(self) -> AsyncIterator[None]:
        """Run the other services of the process until the block ends: the metrics port."""
        if self._metrics is None:
            yield
            return
        source = ServerSource(self._engine.repository, self._metrics, self._server)
        async with serve_pages(Pages(source, self._settings, self._access), self._settings):
            yield


@asynccontextmanager
async def serve_pages(pages: Pages, settings: Settings) -> AsyncIterator[None]:
    """Serve HTTP on the metrics address; raises AddressError."""
    address = settings.metrics_address or ""
    server = HttpServer(address, pages.respond)
    try:
        bound = await server.start()
    except OSError as error:
        raise AddressError(address, error) from error
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

    asyncio.get_running_loop().set_exception_handler(OneLine())
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
    await asyncio.wait((running,), timeout=_ABORT_SECONDS)
    raise KilledError("stopped before the requests in flight were finished")


def exit_soon() -> None:
    """End the process within `CLOSE_SECONDS`; its server has stopped.

    Some libraries wait for their child processes when the interpreter exits.
    """
    timer = threading.Timer(CLOSE_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()


def exit_at_once(error: HungError | KilledError) -> NoReturn:
    """End the process without waiting for its threads, of which one may hang."""
    print(f"foveate serve: {error}", file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(error.code if isinstance(error, HungError) else 1)


def load_http() -> "type[RestServer]":
    """Return the server of HTTP; raises SettingsError where its packages are not installed."""
    try:
        module = import_module("foveate_serve.rest.server")
    except ModuleNotFoundError as error:
        if error.name not in {"starlette", "uvicorn", "python_multipart", "h11"}:
            raise
        raise SettingsError(
            f'http_address: it needs {error.name}: pip install "foveate-serve[http]"'
        ) from error
    server: type[RestServer] = module.RestServer
    return server


def load_tracing() -> "Tracing":
    """Return tracing; raises SettingsError where OpenTelemetry is not installed."""
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
