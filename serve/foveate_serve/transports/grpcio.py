"""grpcio's own server, `grpc.aio`."""

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import grpc
from grpc_channelz.v1.channelz import aio as channelz
from grpc_channelz.v1.channelz_pb2_grpc import add_ChannelzServicer_to_server

from foveate_serve.files import connections_within
from foveate_serve.settings import TransportSettings
from foveate_serve.transports.base import (
    FLUSH_SECONDS,
    SERVER_FAILED,
    MethodHandler,
    Services,
    behaviour_of,
    make_handler,
    services_of,
)
from foveate_serve.transports.listener import bind
from foveate_serve.transports.tls import Renewed, TlsFiles

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Option: TypeAlias = tuple[str, int]

PING_SECONDS = 10.0
"""The least seconds between two PINGs of a client; grpcio's default is 300."""

_HOLD_SECONDS = 0.1
"""Most clients take less between two calls. It is short beside the drain of a server."""

_LINGER_SECONDS = 3.0

_WATCH_SECONDS = 0.02
_ENDED_SECONDS = 60.0
"""The time that calls have on a server that has ended by itself."""

_MOST_PENDING = 3000
"""Calls that wait for the event loop: a second of its work. gRPC ends others with CANCELLED."""

_FEW_CALLS = 64
_KEPT_HANDLERS = 256


class GrpcioTransport(Services):
    """A transport (see `base.Transport`) that is `grpc.aio.server`."""

    def __init__(
        self,
        settings: TransportSettings,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        super().__init__()
        self._settings = settings
        self._calls = _Calls()
        self._interceptors = (self._calls, *interceptors)
        self._server: grpc.aio.Server | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._failed: set[asyncio.Task[None]] = set()

    def add_channelz(self) -> None:
        """Register grpcio's own grpc.channelz.v1, which describes the whole process."""
        add_ChannelzServicer_to_server(channelz.ChannelzServicer(), services_of(self))

    async def listen(
        self, address: str, *, tls: TlsFiles | None = None, share_port: bool = False
    ) -> int:
        """Listen on HOST:PORT, and return the port; see `base.Transport`."""
        credentials = None if tls is None else _credentials(tls)
        if not share_port:
            # grpcio would listen on those addresses of a name that are free, and write lines into
            # its own log about the others.
            for free in await bind(address):
                free.close()
        return await self._start(address, credentials, share_port=share_port)

    async def listen_unix(self, path: Path) -> None:
        """Listen on a socket in the file system; raises OSError."""
        await self._start(f"unix:{path}", None, share_port=False)

    async def go_away(self) -> None:
        """Stop listening, and send GOAWAY: clients make their next calls on another connection.

        grpcio answers CANCELLED to a call that arrives after it has sent GOAWAY. A client
        may send such a call until it has read GOAWAY. New calls are therefore held shortly
        before GOAWAY: a client that waits for an answer sends no other call meanwhile.
        """
        if self._server is None or self._stopping is not None:
            return
        self._stop_watching()
        with self._calls.held():
            await asyncio.sleep(_HOLD_SECONDS)
            self._stopping = asyncio.create_task(self._server.stop(_LONGEST_SECONDS))
            await asyncio.sleep(0)  # the task sends GOAWAY in this round of the loop

    async def finish(self, seconds: float) -> None:
        """Send GOAWAY, and stop after the calls in flight; see `base.Transport`."""
        await self.go_away()
        until = time.monotonic() + seconds
        if await self._calls.ended_within(seconds) and self._stopping is not None:
            # grpcio also waits for clients that do not answer a PING, up to 20 s for each. A
            # client that is slow to answer one may not have read its last answers either.
            left = min(until - time.monotonic(), _LINGER_SECONDS)
            await asyncio.wait((self._stopping,), timeout=max(left, FLUSH_SECONDS))
        await self.stop()

    async def stop(self) -> None:
        """Stop at once: calls in flight end with UNAVAILABLE."""
        self._stop_watching()
        if self._server is not None:
            await self._server.stop(None)
            # grpcio counts a call as ended before its handler has returned.
            await self._calls.ended_within(FLUSH_SECONDS)
        if self._stopping is not None:
            await self._stopping

    async def _start(
        self, address: str, credentials: grpc.ServerCredentials | None, *, share_port: bool
    ) -> int:
        """Listen on an address as gRPC writes it, and return the port; raises OSError."""
        server = grpc.aio.server(
            interceptors=self._interceptors,
            options=(
                *_options(self._settings),
                # A second server on the same port must fail; workers share theirs.
                ("grpc.so_reuseport", int(share_port)),
            ),
        )
        server.add_generic_rpc_handlers(self.generic_handlers)
        try:
            port = (
                server.add_insecure_port(address)
                if credentials is None
                else server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address}") from error
        await server.start()
        self._server = server
        if not address.startswith("unix:"):
            address = f"{address.rpartition(':')[0]}:{port}"
        again = partial(self._start, address, credentials, share_port=share_port)
        self._watch = asyncio.create_task(self._listen_again(server, again))
        return port

    async def _listen_again(
        self, server: grpc.aio.Server, start: Callable[[], Awaitable[int]]
    ) -> None:
        """Start another server where one has ended by itself.

        A call whose path is not UTF-8 ends grpcio's: it decodes the path outside of the call
        (`AioServer._server_main_loop`). Calls in flight go on; the next ones need a listener.
        """
        # There is no event for it.
        inner: Any = server._server  # type: ignore[attr-defined] # noqa: SLF001
        while inner.is_running():  # noqa: ASYNC110
            await asyncio.sleep(_WATCH_SECONDS)
        logger.error("grpcio's server has ended by itself; another one listens in its place")
        ended = asyncio.create_task(server.stop(_ENDED_SECONDS))
        self._failed.add(ended)
        ended.add_done_callback(self._failed.discard)
        listens = False
        while not listens:
            try:
                await start()
                listens = True
            except OSError:
                # The old server's port may not be free yet.
                await asyncio.sleep(_WATCH_SECONDS)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()


class _Calls(grpc.aio.ServerInterceptor):
    """Tracks the calls in flight, and hides the text of unforeseen errors from the client.

    `grpc.aio.Server.stop` alone does not wait for handlers (grpc/grpc#37239), and
    grpc.aio sends a client the text of what a handler or an interceptor raises.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._forget_at = _FEW_CALLS
        self._released: asyncio.Event | None = None
        # Bounded, as some handlers are made for one call.
        self._guarded = lru_cache(maxsize=_KEPT_HANDLERS)(_guarded)

    async def intercept_service(
        self, continuation: Any, handler_call_details: grpc.HandlerCallDetails
    ) -> MethodHandler | None:
        """Track the call, whose task runs this, and find its handler."""
        self._note()
        if self._released is not None:
            await self._released.wait()
        try:
            handler: MethodHandler | None = await continuation(handler_call_details)
        except Exception:
            logger.exception("an interceptor failed")
            return _FAILING
        return None if handler is None else self._guarded(handler)

    async def ended_within(self, seconds: float) -> bool:
        """Wait until every call has ended, at most so many seconds; return whether they have."""
        if not self._tasks:
            return True
        _, running = await asyncio.wait(self._tasks, timeout=seconds)
        return not running

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold new calls back from their handlers until the context ends."""
        self._released = asyncio.Event()
        try:
            yield
        finally:
            self._released.set()

    def _note(self) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            # Ended tasks are removed together: a done callback costs each call more.
            if len(self._tasks) >= self._forget_at:
                self._tasks = {task for task in self._tasks if not task.done()}
                self._forget_at = 2 * len(self._tasks) + _FEW_CALLS


async def _fail(_requests: object, context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.UNKNOWN, SERVER_FAILED)


# A streaming handler answers any kind of call.
_FAILING: MethodHandler = grpc.stream_stream_rpc_method_handler(_fail)


def _guarded(handler: MethodHandler) -> MethodHandler:
    """Return a handler whose unforeseen errors are logged, and sent without their text."""
    behaviour = behaviour_of(handler)
    # grpcio deserialises a single request before it calls the handler, and catches no error there.
    deserialize = handler.request_deserializer
    read: Any = None if handler.request_streaming else deserialize

    async def respond(request: object, context: Context) -> object:
        try:
            return await behaviour(request if read is None else read(request), context)
        except grpc.aio.BaseError as error:  # an abort, or gRPC's own: the call has ended
            request = None
            raise _bare(error)  # noqa: B904
        except Exception:
            logger.exception("a handler failed")
            await context.abort(grpc.StatusCode.UNKNOWN, SERVER_FAILED)

    async def respond_stream(request: object, context: Context) -> None:
        try:
            # Without this, another task closes the generator, after the call.
            async with aclosing(
                behaviour(request if read is None else read(request), context)
            ) as responses:
                async for response in responses:
                    await context.write(response)
        except grpc.aio.BaseError as error:
            request = None
            raise _bare(error)  # noqa: B904
        except Exception:
            logger.exception("a handler failed")
            await context.abort(grpc.StatusCode.UNKNOWN, SERVER_FAILED)

    return make_handler(
        respond_stream if inspect.isasyncgenfunction(behaviour) else respond,
        streaming=(handler.request_streaming, handler.response_streaming),
        read=deserialize if handler.request_streaming else None,
        write=handler.response_serializer,
    )


def _bare(error: grpc.aio.BaseError) -> grpc.aio.BaseError:
    """Return an error without the frames that it passed.

    grpcio keeps the error of an abort with the call, which those frames hold: without this,
    the request is freed by the garbage collector alone, and 20 MB may wait for it each time.
    """
    error.__context__ = None
    return error.with_traceback(None)


def _options(settings: TransportSettings) -> Iterator[Option]:
    """Yield the settings by grpcio's names; a setting of 0 is left out, which means no limit."""
    yield "grpc.max_receive_message_length", settings.max_message_bytes
    yield "grpc.max_concurrent_streams", settings.max_concurrent_streams
    yield "grpc.max_allowed_incoming_connections", connections_within(settings.max_connections)
    yield "grpc.enable_channelz", int(settings.channelz)
    # By default gRPC ends calls at random, with CANCELLED, from 1,000 on that wait for the loop.
    yield "grpc.server.max_pending_requests", _MOST_PENDING
    yield "grpc.server.max_pending_requests_hard_limit", _MOST_PENDING
    for name, seconds in (
        ("grpc.max_connection_idle_ms", settings.max_connection_idle),
        ("grpc.max_connection_age_ms", settings.max_connection_age),
        ("grpc.max_connection_age_grace_ms", settings.max_connection_age_grace),
        ("grpc.keepalive_time_ms", settings.keepalive_time),
        ("grpc.keepalive_timeout_ms", settings.keepalive_timeout),
        # grpcio sends other PINGs too; while one is unanswered, it sends no keepalive.
        ("grpc.http2.ping_timeout_ms", settings.keepalive_timeout),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_SECONDS),
    ):
        if seconds:
            yield name, max(1, min(round(1000 * seconds), _LONGEST_MS))
    # Clients without calls may send PINGs as well, and any number of them.
    yield "grpc.keepalive_permit_without_calls", 1
    yield "grpc.http2.max_pings_without_data", 0


_LONGEST_MS = 2**31 - 1
_LONGEST_SECONDS = _LONGEST_MS / 1000


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that read changed TLS files at each handshake; raises SettingsError."""
    files = Renewed(tls, _certificates)
    return grpc.dynamic_ssl_server_credentials(
        files.value,
        files.renew,  # type: ignore[arg-type] # None means no change; the stubs leave it out
        require_client_authentication=tls.client_ca is not None,
    )


def _certificates(tls: TlsFiles) -> grpc.ServerCertificateConfiguration:
    tls.context()  # for its message: grpcio's is only that it cannot listen
    return grpc.ssl_server_certificate_configuration(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())],
        None if tls.client_ca is None else tls.client_ca.read_bytes(),
    )
