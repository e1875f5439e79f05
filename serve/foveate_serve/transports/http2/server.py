"""Listens, and makes a call for every stream."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
from grpc_channelz.v1.channelz_pb2_grpc import add_ChannelzServicer_to_server

from foveate_serve.deadlines import Deadlines
from foveate_serve.files import connections_within
from foveate_serve.settings import TransportSettings
from foveate_serve.transports.base import FLUSH_SECONDS, MethodHandler, Services, services_of
from foveate_serve.transports.http2.call import Budget, Call, Find
from foveate_serve.transports.http2.channelz import ChannelzServicer
from foveate_serve.transports.http2.connection import Connection
from foveate_serve.transports.http2.counts import Counts
from foveate_serve.transports.http2.headers import Head
from foveate_serve.transports.http2.lifetime import Lifetime
from foveate_serve.transports.listener import Listener, bind
from foveate_serve.transports.places import Place, Places
from foveate_serve.transports.tls import TlsFiles, renewed_context

BUFFER_BYTES = 256 << 10
"""The size of the read buffer that all connections share: above that of most pictures."""


class Http2Transport(Services):
    """A transport (see `base.Transport`): HTTP/2 on the event loop."""

    def __init__(
        self,
        settings: TransportSettings,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        super().__init__()
        self._settings = settings
        self._budget = Budget(limit=max(settings.max_request_bytes, settings.max_message_bytes))
        self._buffer = bytearray(BUFFER_BYTES)
        self._places = Places(connections_within(settings.max_connections))
        self._listeners: list[Listener] = []
        self.connections: dict[int, Connection] = {}
        self._lifetimes: dict[int, Lifetime] = {}
        self._numbers = 0
        self._deadlines = Deadlines()
        self._past = Counts()
        self._empty = asyncio.Event()
        self._empty.set()
        self._find: Find = self.handler
        for interceptor in reversed(interceptors):
            self._find = _intercepted(interceptor, self._find)

    def add_channelz(self) -> None:
        """Register grpc.channelz.v1, with the connections and their counts."""
        add_ChannelzServicer_to_server(ChannelzServicer(self), services_of(self))

    async def listen(
        self, address: str, *, tls: TlsFiles | None = None, share_port: bool = False
    ) -> int:
        """Listen on HOST:PORT, and return the port; see `base.Transport`."""
        context = None if tls is None else renewed_context(tls, "h2")
        bound = await bind(address, share_port=share_port)
        for one in bound:
            self._listen_on(one, context)
        return int(bound[0].getsockname()[1])

    async def listen_unix(self, path: Path) -> None:
        """Listen on a socket in the file system; raises OSError."""
        self._listen_on(_bound(path), None)

    def _listen_on(self, bound: socket.socket, tls: ssl.SSLContext | None) -> None:
        self._listeners.append(Listener(bound, self._placed, self._places, tls))

    async def go_away(self) -> None:
        """Stop listening, and send GOAWAY: clients make their next calls on another connection."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections.values()):
            connection.go_away()

    async def finish(self, seconds: float) -> None:
        """Send GOAWAY, and stop after the calls in flight; see `base.Transport`."""
        await self.go_away()
        # Each connection closes when its last call is answered.
        await self._closed_within(seconds)
        await self.stop()

    async def stop(self) -> None:
        """Stop at once: calls in flight end with UNAVAILABLE, and their statuses are written."""
        await self.go_away()
        calls = self._calls()
        for call in calls:
            call.cut_off()
        if calls:
            await asyncio.wait([call.task for call in calls])
        for connection in list(self.connections.values()):
            connection.close()
        await self._closed_within(FLUSH_SECONDS)
        for connection in list(self.connections.values()):
            connection.abort()

    async def _closed_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), seconds)

    async def handler(self, details: grpc.HandlerCallDetails) -> MethodHandler | None:
        """Return the handler of a call, None where there is none."""
        for handlers in self.generic_handlers:
            found = handlers.service(details)
            if found is not None:
                return found
        return None

    def counts(self) -> Counts:
        """Return the counts of all connections, closed ones included."""
        counts = replace(self._past)
        for connection in self.connections.values():
            counts.add(connection.counts)
        return counts

    def _calls(self) -> list[Call]:
        return [
            stream
            for connection in self.connections.values()
            for stream in connection.streams.values()
            if isinstance(stream, Call)
        ]

    def _placed(self, place: Place) -> Connection:
        def opened(connection: Connection) -> None:
            place.connection = connection
            self._opened(connection)

        def closed(connection: Connection) -> None:
            place.release()
            self._closed(connection)

        return Connection(
            self._accept,
            self._buffer,
            max_streams=self._settings.max_concurrent_streams,
            opened=opened,
            closed=closed,
        )

    def _accept(self, connection: Connection, number: int, head: Head) -> Call:
        return Call(
            connection,
            number,
            head,
            find=self._find,
            max_message_bytes=self._settings.max_message_bytes,
            budget=self._budget,
            deadlines=self._deadlines,
        )

    def _opened(self, connection: Connection) -> None:
        self._numbers += 1
        connection.number = self._numbers
        self.connections[connection.number] = connection
        self._lifetimes[connection.number] = Lifetime(connection, self._settings)
        self._empty.clear()

    def _closed(self, connection: Connection) -> None:
        del self.connections[connection.number]
        self._lifetimes.pop(connection.number).stop()
        self._past.add(connection.counts)
        if not self.connections:
            self._empty.set()


def _bound(path: Path) -> socket.socket:
    """Return a socket at a path, instead of one that a process before has left there."""
    if path.is_socket():
        path.unlink()
    one = socket.socket(socket.AF_UNIX)
    try:
        one.bind(str(path))
    except OSError:
        one.close()
        raise
    return one


def _intercepted(interceptor: grpc.aio.ServerInterceptor, find: Find) -> Find:
    async def intercepted(details: grpc.HandlerCallDetails) -> MethodHandler | None:
        return await interceptor.intercept_service(find, details)

    return intercepted
