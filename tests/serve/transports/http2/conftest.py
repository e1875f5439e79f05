"""A server with a handler of every kind, and a client that sends what frames it likes."""

import asyncio
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
import pytest_asyncio
from hpack import Decoder, Encoder

from foveate_serve.settings import TransportSettings
from foveate_serve.transports.http2.connection import Connection
from foveate_serve.transports.http2.frames import PREFACE, ErrorCode, Flag, Kind, Setting
from foveate_serve.transports.http2.server import Http2Transport

from ....waiting import LIMIT_SECONDS, until
from ..service import Context, Service, path

Fields: TypeAlias = list[tuple[str, str]]


@dataclass
class Served:
    """A server that listens, and what went wrong on its event loop."""

    server: Http2Transport
    service: Service
    port: int
    problems: list[dict[str, Any]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def held(self) -> int:
        """Bytes of messages on their way to a handler."""
        return self.server._budget.held

    @property
    def connection(self) -> Connection:
        """The only one."""
        (connection,) = self.server.connections.values()
        return connection

    def channel(self, *options: tuple[str, Any]) -> grpc.aio.Channel:
        """A channel of the real client, with a connection of its own."""
        own = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
        return grpc.aio.insecure_channel(self.address, options=[*own, *options])

    async def open(
        self, settings: dict[int, int] | None = None, *, greet: bool = True
    ) -> "RawClient":
        return await RawClient.open(self.port, settings or {}, greet=greet)

    async def has_forgotten(self) -> None:
        """Wait until nothing is left of any call."""
        await until(lambda: not any(c.streams for c in self.server.connections.values()))
        await until(lambda: not any(c.running for c in self.server.connections.values()))
        await until(lambda: not self.held)


def make_server(**limits: Any) -> Http2Transport:
    return Http2Transport(TransportSettings(**limits))


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[Served]:
    """Serve on a free port; afterwards nothing has failed unseen, and nothing is left behind."""
    server, service = make_server(**limits), Service()
    server.add_generic_rpc_handlers([service.handlers()])
    served = Served(server, service, await server.listen("127.0.0.1:0"))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, problem: served.problems.append(problem))
    try:
        yield served
    finally:
        service.gate.set()
        await server.stop()
        loop.set_exception_handler(None)
    assert not served.problems
    assert not server.connections
    assert served.held == 0


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@pytest_asyncio.fixture
async def channel(served: Served) -> AsyncIterator[grpc.aio.Channel]:
    async with served.channel() as channel:
        yield channel


@pytest_asyncio.fixture
async def client(served: Served) -> AsyncIterator["RawClient"]:
    """A raw client that has exchanged settings with the server."""
    async with await served.open() as client:
        await client.settle()
        yield client


# Frames, written without the server's own functions.


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = struct.pack(">I", len(payload))[1:]
    return size + struct.pack(">BBI", kind, flags, stream) + payload


def settings(values: dict[int, int] | None = None) -> bytes:
    pairs = (values or {}).items()
    return frame(Kind.SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def data(stream: int, payload: bytes = b"", *, end: bool = False) -> bytes:
    return frame(Kind.DATA, Flag.END_STREAM if end else 0, stream, payload)


def window(stream: int, size: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


def reset(stream: int, code: int = ErrorCode.CANCEL) -> bytes:
    return frame(Kind.RST_STREAM, 0, stream, struct.pack(">I", code))


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    return frame(Kind.PING, Flag.ACK if ack else 0, 0, payload)


def message(body: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(body)) + body


def request(method: str, *more: tuple[str, str]) -> Fields:
    """Return the headers of a call."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path(method)),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]


def block(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return a header block that needs no table."""
    return Encoder().encode([(name, value, True) for name, value in fields])


def opening(
    stream: int, fields: Iterable[tuple[str, str]] | None = None, *, end: bool = False
) -> bytes:
    """Return the frame that opens a stream: a call of Echo if nothing else is wanted."""
    flags = Flag.END_HEADERS | (Flag.END_STREAM if end else 0)
    return frame(Kind.HEADERS, flags, stream, block(request("Echo") if fields is None else fields))


def call(stream: int, method: str, body: bytes = b"") -> bytes:
    """Return the frames of a whole unary call."""
    return opening(stream, request(method)) + data(stream, message(body), end=True)


@dataclass(frozen=True)
class Frame:
    """A frame from the server."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def number(self) -> int:
        """The only number in a frame, or the last of a GOAWAY."""
        start = 4 if self.kind == Kind.GOAWAY else 0
        return int.from_bytes(self.payload[start : start + 4])

    @property
    def last(self) -> int:
        """The last stream that a GOAWAY lets through."""
        return int.from_bytes(self.payload[:4])


@dataclass
class Answer:
    """What has come on one stream."""

    heads: list[dict[str, str]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    sizes: list[int] = field(default_factory=list)
    """Of the frames that brought the body."""
    ended: bool = False
    reset: int | None = None
    owed: int = 0
    """Bytes of the windows that were not given back."""

    @property
    def status(self) -> str | None:
        return self.heads[-1].get("grpc-status")


class RawClient:
    """A client that sends bytes as it likes, and reads frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.answers_pings = False
        self.seen: list[Frame] = []
        self.found: defaultdict[int, Answer] = defaultdict(Answer)
        self._decoder = Decoder()
        self._block = b""

    @classmethod
    async def open(cls, port: int, values: dict[int, int], *, greet: bool = True) -> "RawClient":
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        if greet:
            client.send(PREFACE, settings(values))
        return client

    async def __aenter__(self) -> "RawClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.vanish()

    def vanish(self) -> None:
        """Go without a word."""
        self.writer.transport.abort()

    def send(self, *parts: bytes) -> None:
        # asyncio warns of what is written to a lost connection.
        if not self.writer.is_closing():
            self.writer.write(b"".join(parts))

    def stop_reading(self) -> None:
        """Leave what comes in the socket."""
        self._transport.pause_reading()

    def go_on_reading(self) -> None:
        self._transport.resume_reading()

    @property
    def _transport(self) -> Any:
        return self.writer.transport

    async def settle(self) -> None:
        """Wait until the server has taken the settings, and acknowledge its own."""
        await self.until(lambda found: found.kind == Kind.SETTINGS and bool(found.flags & Flag.ACK))
        self.send(frame(Kind.SETTINGS, Flag.ACK, 0))

    async def next(self) -> Frame:
        """Read a frame; raises EOFError at the end of the connection."""
        async with asyncio.timeout(LIMIT_SECONDS):
            try:
                head = await self.reader.readexactly(9)
                payload = await self.reader.readexactly(int.from_bytes(head[:3]))
            except ConnectionError as error:
                raise EOFError from error
        found = Frame(head[3], head[4], int.from_bytes(head[5:]), payload)
        self.seen.append(found)
        if self.answers_pings and found.kind == Kind.PING and not found.flags & Flag.ACK:
            self.send(ping(found.payload, ack=True))
        self._note(found)
        return found

    def _note(self, found: Frame) -> None:
        if not found.stream:
            return
        answer = self.found[found.stream]
        if found.kind in (Kind.HEADERS, Kind.CONTINUATION):
            self._block += found.payload
            if found.flags & Flag.END_HEADERS:
                answer.heads.append(dict(self._decoder.decode(self._block)))
                self._block = b""
        elif found.kind == Kind.DATA:
            answer.body += found.payload
            answer.sizes.append(len(found.payload))
            answer.owed += len(found.payload)
        elif found.kind == Kind.RST_STREAM:
            answer.reset = found.number
        if found.kind in (Kind.HEADERS, Kind.DATA) and found.flags & Flag.END_STREAM:
            answer.ended = True

    async def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """Read up to a frame."""
        while not wanted(found := await self.next()):
            pass
        return found

    async def until_kind(self, kind: int, stream: int = 0) -> Frame:
        return await self.until(lambda found: (found.kind, found.stream) == (kind, stream))

    async def has_answered(self) -> None:
        """Wait until the server has done what it was sent before, as far as it can."""
        # A handler begins on the round of the event loop after that of its frames.
        for _ in range(3):
            self.send(ping(b"answered"))
            await self.until(lambda found: found.kind == Kind.PING and found.payload == b"answered")

    async def answer(self, stream: int) -> Answer:
        """Read what comes on a stream up to its end, and give back the windows that it takes."""
        answer = self.found[stream]
        while not (answer.ended or answer.reset is not None):
            if answer.owed:
                self.send(window(0, answer.owed), window(stream, answer.owed))
                answer.owed = 0
            found = await self.next()
            if found.kind == Kind.GOAWAY and found.number:
                raise EOFError(found)
        return answer

    async def was_reset(self, stream: int) -> int:
        """Wait for the server to reset a stream, and return the code it gives."""
        while (code := self.found[stream].reset) is None:
            await self.next()
        return code

    async def failure(self) -> int:
        """Wait for the server to end the connection, and return the code it gives."""
        await self.has_lost()
        return [found.number for found in self.seen if found.kind == Kind.GOAWAY][-1]

    async def has_lost(self) -> None:
        """Wait for the end of the connection."""
        with suppress(EOFError):
            while True:
                await self.next()


LARGE_WINDOWS = {Setting.INITIAL_WINDOW_SIZE: 2**31 - 1}
