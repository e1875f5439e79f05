"""The supervisor: starts workers that share one address, and restarts those that end."""

import asyncio
import errno
import json
import logging
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.registry import Collector

from foveate_runtime.cores import count_cores
from foveate_serve.access import make_access_control
from foveate_serve.observe.known_versions import KnownVersions
from foveate_serve.observe.metrics import metrics_of_workers
from foveate_serve.observe.pages import Pages, VersionRow
from foveate_serve.observe.triton import TritonNames
from foveate_serve.process import Ready, StartError, load_http, serve_pages
from foveate_serve.rpc.server import AddressError
from foveate_serve.settings import Settings
from foveate_serve.transports.tls import tls_files
from foveate_serve.workers.peers import FIGURES, Peers, rows_of, serves, versions_of
from foveate_serve.workers.worker import FAILED, Assignment

logger = logging.getLogger(__name__)

# These would add a creation time to every counter, which Prometheus does not use.
disable_created_metrics()  # type: ignore[no-untyped-call]

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0
"""A worker that ends after so many seconds is restarted after the shortest pause."""

KILL_SECONDS = 1.0
"""How long a worker may take beyond its shutdown timeout before it is killed."""

_STDERR = 2

_SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108 - the folder in it is new
_LONGEST_PLACE = 72
"""A socket's path has at most 107 bytes: this, "/foveate-", eight letters, and its own name."""


class Supervisor:
    """`settings.workers` processes that share an address; raises SettingsError.

    Each worker listens itself, and the kernel distributes the connections. A worker
    that ends is restarted, after a pause that doubles each time.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._access = make_access_control(settings)
        if (tls := tls_files(settings)) is not None:
            tls.context()  # so that bad files are reported once, not by every worker
        self._workers: dict[int, Process] = {}
        self._ready: dict[int, int] = {}
        self._all_ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._own = CollectorRegistry()
        self._restarts = Counter(
            "foveate_worker_restarts",
            "Workers restarted after they had ended.",
            registry=self._own,
        )
        ready = Gauge("foveate_workers_ready", "Workers that serve.", registry=self._own)
        ready.set_function(lambda: len(self._ready))

    @property
    def is_ready(self) -> bool:
        """Whether a worker serves, and the supervisor is not stopping."""
        return bool(self._ready) and not self._stopping.is_set()

    def processes(self) -> set[int]:
        """Return the numbers of the workers' processes."""
        return {process.pid for process in self._workers.values()}

    async def run(self, stop: asyncio.Event, ready: Ready) -> None:
        """Run the workers until `stop` is set, then drain them.

        Raises AddressError, and StartError where a worker cannot start.
        """
        async with AsyncExitStack() as stack:
            made = TemporaryDirectory(prefix="foveate-", dir=short_place())
            folder = Path(stack.enter_context(made))
            (folder / FIGURES).mkdir()
            address = stack.enter_context(reserved(self._settings.address))
            if self._settings.http_address is not None:
                load_http()  # so that a package that is missing is reported once
                http_address = stack.enter_context(reserved(self._settings.http_address))
                # Every worker must listen on the port that was picked.
                self._settings = self._settings.model_copy(update={"http_address": http_address})
            if self._settings.metrics_address is not None:
                source = SupervisorSource(self, folder, self._own)
                pages = Pages(source, self._settings, self._access)
                await stack.enter_async_context(serve_pages(pages, self._settings))
            numbers = range(self._settings.workers)
            keepers = [asyncio.create_task(self._keep_running(i, folder, address)) for i in numbers]
            waiting = [asyncio.create_task(event.wait()) for event in (stop, self._all_ready)]
            try:
                # Before `stop`, a keeper ends only where its worker could not start.
                await asyncio.wait((*keepers, *waiting), return_when=asyncio.FIRST_COMPLETED)
                if self._all_ready.is_set():
                    ready(max(self._ready.values(), default=0), address)
                    await asyncio.wait((*keepers, waiting[0]), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._stopping.set()
                for task in waiting:
                    task.cancel()
                await self._stop_workers(keepers)

    async def abort(self) -> None:
        """Kill the workers."""
        for process in self._workers.values():
            _kill(process)

    async def _stop_workers(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Drain the workers, and kill those that pass the timeout.

        Raises the first error of a keeper, once all workers have ended.
        """
        for process in self._workers.values():
            with suppress(ProcessLookupError):
                process.terminate()
        settings = self._settings
        limit = settings.shutdown_delay + settings.shutdown_timeout + KILL_SECONDS
        _, late = await asyncio.wait(keepers, timeout=limit)
        if late:
            logger.error("%d workers have not ended within %g s and are killed", len(late), limit)
            await self.abort()
        for ended in await asyncio.gather(*keepers, return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended

    async def _keep_running(self, index: int, folder: Path, address: str) -> None:
        pause, served = FIRST_PAUSE, False
        while not self._stopping.is_set():
            started = time.monotonic()
            code = await self._run_worker(index, folder, address)
            served = served or self._all_ready.is_set()
            if self._stopping.is_set():
                return
            if not served:
                raise StartError(f"a worker ended with the code {code} before it served")
            if time.monotonic() - started > STEADY_SECONDS:
                pause = FIRST_PAUSE
            logger.error(
                "worker %d ended with the code %d; it is restarted in %.1f s", index, code, pause
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return
            pause = min(2 * pause, LONGEST_PAUSE)
            self._restarts.inc()

    async def _run_worker(self, index: int, folder: Path, address: str) -> int:
        """Run one worker to its end, and return its exit code."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "foveate_serve.workers.worker", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                stdin=DEVNULL,
                # Libraries may print: this process's standard output is for the ready line.
                stdout=_STDERR,
                # Ctrl-C reaches the supervisor only, which then stops the workers.
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            logger.error("worker %d cannot be started: %s", index, error.strerror)  # noqa: TRY400
            return FAILED
        finally:
            theirs.close()
        self._workers[index] = process
        if self._stopping.is_set():
            process.terminate()
        assignment = Assignment(
            settings=worker_settings(self._settings, address), folder=folder, index=index
        )
        reader, writer = await asyncio.open_connection(sock=ours)
        reading = asyncio.create_task(_read_line(reader))
        ended = asyncio.create_task(process.wait())
        try:
            writer.write(assignment.model_dump_json().encode() + b"\n")
            # A child process of the worker may hold its end of the socket open.
            await asyncio.wait((reading, ended), return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and (line := reading.result()):
                self._ready[index] = json.loads(line)["models"]
                if len(self._ready) == self._settings.workers:
                    self._all_ready.set()
            return await ended
        finally:
            reading.cancel()
            writer.close()
            self._ready.pop(index, None)
            del self._workers[index]
            _kill(process)
            Peers(folder).socket(index).unlink(missing_ok=True)


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """Return the next line, empty where the other side has closed."""
    try:
        return await reader.readline()
    except OSError:
        return b""


def _kill(process: Process) -> None:
    """Kill a worker and its child processes: it leads a process group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class SupervisorSource:
    """The content of the metrics port: the models of one worker, the metrics of all."""

    def __init__(self, supervisor: Supervisor, folder: Path, own: CollectorRegistry) -> None:
        self._supervisor = supervisor
        self._peers = Peers(folder)
        self._registry = CollectorRegistry()
        self._registry.register(own)
        self._known_versions = KnownVersions(
            metrics_of_workers(folder / FIGURES, supervisor.processes)
        )
        self._registry.register(TritonNames(self._known_versions))

    async def is_ready(self) -> bool:
        """Return whether a worker reports SERVING."""
        if not self._supervisor.is_ready:
            return False
        return any(await asyncio.gather(*map(serves, self._peers.all())))

    @property
    def is_hung(self) -> bool:
        """Never: the supervisor restarts a worker that hangs."""
        return False

    async def rows(self) -> Sequence[VersionRow]:
        """Return every version known to a worker, by model, the newest first."""
        for path in self._peers.all():
            with suppress(grpc.aio.AioRpcError):
                return await rows_of(path)
        return []

    async def metrics(self) -> Collector:
        """Return the metrics as they are now."""
        for path in self._peers.all():
            with suppress(grpc.aio.AioRpcError):
                self._known_versions.update(await versions_of(path))
                break
        return self._registry


def worker_settings(settings: Settings, address: str) -> dict[str, Any]:
    """Return the settings of each worker, with the secrets, and with its share of the cores."""
    values = settings.model_dump(mode="json")
    values |= {"address": address, "models": settings.own_settings()}
    if settings.token is not None:
        values["token"] = settings.token.get_secret_value()
    share = max(1, count_cores() // settings.workers)
    if settings.engine_threads == 0:
        values["engine_threads"] = max(1, share // settings.instances)
    for model, own in values["models"].items():
        if settings.of(model).engine_threads == 0 and own.keys() & {"engine_threads", "instances"}:
            own["engine_threads"] = max(1, share // settings.of(model).instances)
    if "image_threads" not in settings.model_fields_set:
        values["image_threads"] = share
    return values


def short_place() -> str:
    """Return a folder for temporary ones whose path leaves room for the name of a socket.

    TMPDIR is taken where it is short enough. Raises StartError where there is none.
    """
    places = [*_SHORT_PLACES]
    with suppress(OSError):
        places.insert(0, gettempdir())
    for place in places:
        if len(os.fsencode(place)) <= _LONGEST_PLACE and os.access(place, os.W_OK | os.X_OK):
            return place
    raise StartError(
        f"the sockets of workers need a folder that can be written to, with a path of at most "
        f"{_LONGEST_PLACE} bytes; set TMPDIR"
    )


@contextmanager
def reserved(address: str) -> Iterator[str]:
    """Reserve a port for the workers, and yield the address with its number.

    A name may have several addresses, which have one port; those that this machine has
    not are left out, unless there is no other. Raises AddressError where another process
    listens there.
    """
    host, _, port = address.rpartition(":")
    number, problems = int(port), []
    with ExitStack() as stack:
        try:
            places = dict.fromkeys(
                socket.getaddrinfo(
                    host.strip("[]"), number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
            )
            for family, kind, protocol, _, place in places:
                try:
                    number = _reserve(stack, (family, kind, protocol), place, number)
                except OSError as error:
                    problems.append(error)
                    if error.errno == errno.EADDRINUSE or len(problems) == len(places):
                        raise
        except OSError as error:
            raise AddressError(address, error) from error
        yield f"{host}:{number}"


def _reserve(
    stack: ExitStack, kind: tuple[int, int, int], place: tuple[Any, ...], port: int
) -> int:
    """Bind a socket to a port until the stack ends; return its number. Raises OSError."""
    # First without SO_REUSEPORT: the port of another server must not be shared.
    with socket.socket(*kind) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind((place[0], port, *place[2:]))
        number = int(alone.getsockname()[1])
    shared = stack.enter_context(socket.socket(*kind))
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind((place[0], number, *place[2:]))
    return number
