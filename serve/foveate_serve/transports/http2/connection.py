"""One connection of HTTP/2, as a server sees it (RFC 9113).

Knows nothing of gRPC: what its streams carry is for the `Stream` that `accept`
makes of each.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import cast

from foveate_serve.transports.http2 import frames
from foveate_serve.transports.http2.counts import Counts
from foveate_serve.transports.http2.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_TABLE_BYTES,
    DEFAULT_WINDOW,
    FRAME_BYTES,
    LARGEST_FRAME_BYTES,
    LARGEST_STREAM,
    LARGEST_WINDOW,
    ErrorCode,
    Flag,
    Kind,
    ProtocolError,
    Setting,
    StreamError,
)
from foveate_serve.transports.http2.headers import MAX_LIST_BYTES, Head, HeadReader, check_trailers
from foveate_serve.transports.http2.reading import FrameReader, require_other
from foveate_serve.transports.http2.sending import Sender
from foveate_serve.transports.http2.stream import STREAM_WINDOW, Stream

CONNECTION_WINDOW = 16 << 20

HANDSHAKE_SECONDS = 20.0
"""What a client gets to say that it speaks HTTP/2."""

GOAWAY_SECONDS = 1.0
"""The time that a client has to answer the first GOAWAY; the second names the last stream."""

MOST_WAITING = 16 << 20
"""Bytes of answers that wait for a client's windows, above which it gets no further stream."""

_KEEPALIVE = b"alive?  "
MOST_RESETS = 1000
"""Streams that a client may give up at one time (CVE-2023-44487)."""
RESETS_A_SECOND = 33.0
"""How many it may give up beyond them, as time goes by."""
MOST_PINGS = 5000
PINGS_A_SECOND = 100.0
"""PINGs that a client may send at one time, and beyond them as time goes by (CVE-2019-9512)."""
_MOST_EMPTY = 10_000
"""Frames that carry nothing, between two streams: padding is no reason for as many."""
_REMEMBERED = 1024
"""Streams whose end is remembered: frames may be on their way when one ends."""

_OUR_SETTINGS = {
    Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
    Setting.MAX_FRAME_SIZE: FRAME_BYTES,
    Setting.MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES,
}


class _Bucket:
    """A leaky bucket."""

    __slots__ = ("_at", "_level")

    def __init__(self) -> None:
        self._level = self._at = 0.0

    def add(self, now: float, a_second: float) -> float:
        """Return the level with one more, after what has leaked `a_second` until `now`."""
        self._level = max(0.0, self._level - a_second * (now - self._at)) + 1
        self._at = now
        return self._level


class Connection(asyncio.BufferedProtocol):
    """Takes the frames that come apart; what goes is its `sender`'s.

    `accept` makes the stream of a call from its head. What is read goes through
    `buffer`, which all connections of an event loop may share: nothing of it is
    kept once it is read. More than `max_streams` at one time are refused, which
    by HTTP/2 a client may try again at once.
    """

    def __init__(
        self,
        accept: Callable[["Connection", int, Head], Stream],
        buffer: bytearray,
        *,
        max_streams: int,
        opened: Callable[["Connection"], None],
        closed: Callable[["Connection"], None],
    ) -> None:
        self._accept = accept
        self._buffer = memoryview(buffer)
        self._max_streams = max_streams
        self._opened = opened
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._reader = HeadReader()
        self.number = 0
        """Among those of a server."""
        self.counts = Counts()
        self.streams: dict[int, Stream] = {}
        self.running = 0
        """How many streams are worked on, those included that the client has given up."""
        self.sender = Sender(finished=self._end)
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.heard_at = self.idle_since = self._loop.time()
        """When bytes came last, and since when there has been no stream."""
        self.inflating = asyncio.Lock()
        """Held while a large message is inflated."""

        self._frames = FrameReader(self)
        self._resettled = False
        self._data_stream: Stream | None = None
        self._data_ends = False
        self._last = 0
        self._ended: dict[int, bool] = {}
        self._empty = 0
        self._resets, self._pings = _Bucket(), _Bucket()
        self._unacknowledged = 0
        self._receive_window = CONNECTION_WINDOW
        self._leaving = False
        self._goaway_ping = b""
        self._timer: asyncio.TimerHandle | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        self.transport = self.sender.transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # A peer that vanished without a word is noticed in the end.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._timer = self._loop.call_later(HANDSHAKE_SECONDS, self._give_up)
        self._opened(self)
        self.sender.emit(
            frames.settings({Setting.MAX_CONCURRENT_STREAMS: self._max_streams, **_OUR_SETTINGS})
        )
        self.sender.emit(frames.window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        """Return where to put what is read."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        self.heard_at = self._loop.time()
        if self.transport.is_closing():
            return
        try:
            self._frames.feed(self._buffer[:nbytes])
            if self._resettled:
                self._resettled = False
                self.sender.settled(list(self.streams.values()))
        except ProtocolError as error:
            self._fail(error)

    def pause_writing(self) -> None:
        """Pause: the client does not read as fast as it is answered."""
        self.sender.pause()

    def resume_writing(self) -> None:
        """Resume: the client has caught up."""
        self.sender.resume(list(self.streams.values()))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Give up what is not answered."""
        if self._timer is not None:
            self._timer.cancel()
        self.sender.clear()
        for stream in list(self.streams.values()):
            self._drop(stream)
        self._closed(self)

    # What streams call.

    def credit(self, stream: Stream, size: int) -> None:
        """Let the client send so many bytes more on a stream."""
        stream.owed += size
        if stream.owed >= STREAM_WINDOW // 2 and not (stream.ended_by_client or stream.closed):
            stream.receive_window += stream.owed
            self.sender.emit(frames.window_update(stream.number, stream.owed))
            stream.owed = 0

    # What a server calls.

    def go_away(self) -> None:
        """Have the client open no more streams, and close once those that are open have ended."""
        if self._leaving or self.transport.is_closing():
            return
        self._leaving = True
        # What it opened before it has read this is answered still (RFC 9113, section 6.8).
        self._goaway_ping = b"go away!"
        self.sender.emit(frames.go_away(LARGEST_STREAM, ErrorCode.NO_ERROR))
        self.sender.emit(frames.ping(self._goaway_ping, ack=False))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(GOAWAY_SECONDS, self._confirm_goaway)

    def cut_off(self) -> None:
        """Cancel what is worked on, and close once that has been told."""
        for stream in list(self.streams.values()):
            stream.cut_off()
        # It may have no room for what it is told.
        self._loop.call_later(GOAWAY_SECONDS, self._give_up)

    def ping(self) -> None:
        """Ask the client for a sign of life."""
        self.sender.emit(frames.ping(_KEEPALIVE, ack=False))

    def close(self) -> None:
        """Close once what was sent has left."""
        self._name_the_last()
        self.sender.flush()
        self.transport.close()

    def idle_for(self) -> float:
        """Return for how many seconds there has been no stream; 0 while there is one."""
        return 0.0 if self.streams else self._loop.time() - self.idle_since

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()

    @property
    def receive_window(self) -> int:
        """How many bytes the client may send in all."""
        return self._receive_window

    # Frames that come.

    def headers(self, number: int, block: bytes, *, ends: bool) -> None:
        """Take a header block; see `reading.Receiver`."""
        stream = self.streams.get(number)
        try:
            if stream is not None:
                self._on_trailers(stream, block, ends=ends)
            elif number > self._last:
                self._open(number, block, ends=ends)
            else:
                self._on_late_headers(number, block)
        except StreamError as error:
            self._fail_stream(number, error)

    def frame(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        """Take a frame that brings neither headers nor data; see `reading.Receiver`."""
        try:
            self._frame(kind, flags, number, payload)
        except StreamError as error:
            self._fail_stream(number, error)

    def _frame(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        match kind:
            case Kind.WINDOW_UPDATE:
                self._on_window_update(number, payload)
            case Kind.RST_STREAM:
                self._on_reset(number, payload)
            case Kind.PING:
                self._on_ping(number, flags, payload)
            case Kind.SETTINGS:
                self._on_settings(number, flags, payload)
            case Kind.PRIORITY:
                self._on_priority(number, payload)
            case Kind.GOAWAY:
                _require(number == 0, "GOAWAY belongs to the connection")
            case Kind.PUSH_PROMISE:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a client pushes nothing")
            case _:
                self.nothing()  # of an extension, to be ignored

    def _on_late_headers(self, number: int, block: bytes) -> None:
        self._reader.skip(block)
        if number not in self._ended:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a stream's number goes down")
        if not self._ended[number]:
            raise ProtocolError(ErrorCode.STREAM_CLOSED, "the stream has ended")

    def _on_trailers(self, stream: Stream, block: bytes, *, ends: bool) -> None:
        fields = self._reader.skip(block)
        if stream.ended_by_client:
            raise StreamError(ErrorCode.STREAM_CLOSED, "the client has ended the stream")
        check_trailers(fields)
        if not ends:
            raise StreamError(ErrorCode.PROTOCOL_ERROR, "headers within a stream must end it")
        self._end_by_client(stream)

    def _open(self, number: int, block: bytes, *, ends: bool) -> None:
        self._last = number
        if self._leaving and not self._goaway_ping:
            # The client has been told that this one is not answered.
            self._remember(number, by_us=True)
            self._reader.read(block)
            return
        head = self._reader.read(block)
        if max(self.running, len(self.streams)) >= self._max_streams:
            self.nothing()
            raise StreamError(ErrorCode.REFUSED_STREAM, "the client has too many streams")
        if self.sender.waiting > MOST_WAITING:
            self.nothing()
            raise StreamError(ErrorCode.REFUSED_STREAM, "the client does not read its answers")
        self._empty = 0
        self.counts.started += 1
        self.counts.last_started = time.time()
        stream = self.streams[number] = self._accept(self, number, head)
        if ends:
            self._end_by_client(stream)

    def data_begins(self, number: int, size: int, *, ends: bool) -> None:
        """Account for a DATA frame whose bytes are about to come; see `reading.Receiver`."""
        self._receive_window -= size
        if self._receive_window < 0:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is full")
        self._unacknowledged += size
        if self._unacknowledged >= CONNECTION_WINDOW // 2:
            self._receive_window += self._unacknowledged
            self.sender.emit(frames.window_update(0, self._unacknowledged))
            self._unacknowledged = 0
        self._data_ends = ends
        self._data_stream = None
        try:
            self._data_stream = self._receiver(number, size)
        except StreamError as error:
            self._fail_stream(number, error)
        if not (size or ends):
            self.nothing()

    def _receiver(self, number: int, size: int) -> Stream | None:
        """Return the stream that takes so many bytes, None where they are for nobody any more."""
        stream = self.streams.get(number)
        if stream is None:
            self._require_known(number)
            if not self._ended.get(number, False):
                raise StreamError(ErrorCode.STREAM_CLOSED, "the stream has ended")
            return None
        if stream.ended_by_client:
            raise StreamError(ErrorCode.STREAM_CLOSED, "the client has ended the stream")
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise StreamError(ErrorCode.FLOW_CONTROL_ERROR, "the stream's window is full")
        return stream

    def data(self, data: memoryview, *, last: bool) -> None:
        """Take bytes of the DATA frame at hand; see `reading.Receiver`."""
        stream = self._data_stream
        if stream is None:
            return
        if data and not stream.closed:
            stream.received(data)
        if last and self._data_ends and not stream.closed:
            self._end_by_client(stream)

    def padding(self, size: int) -> None:
        """Credit what was no data; see `reading.Receiver`."""
        if self._data_stream is not None:
            self.credit(self._data_stream, size)

    def _on_window_update(self, number: int, payload: memoryview) -> None:
        size = _number(payload) & LARGEST_WINDOW
        if number == 0:
            _require(size > 0, "a window is not opened by nothing")
            self.sender.widen(size)
            return
        self._require_known(number)
        stream = self.streams.get(number)
        if size == 0:
            raise StreamError(ErrorCode.PROTOCOL_ERROR, "a window is not opened by nothing")
        if stream is not None:
            self.sender.widen_stream(stream, size)

    def _on_reset(self, number: int, payload: memoryview) -> None:
        _number(payload)
        self._require_known(number)
        stream = self.streams.get(number)
        if stream is not None:
            self._count_reset()
            self._drop(stream)

    def _count_reset(self) -> None:
        """Count a stream that ended before its answer, which costs a client less than the server.

        Whether it gives the stream up or sends what the server must end it for (CVE-2025-8671)
        makes no difference.
        """
        if self._resets.add(self._loop.time(), RESETS_A_SECOND) > MOST_RESETS:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many streams are given up")

    def _on_ping(self, number: int, flags: int, payload: memoryview) -> None:
        if len(payload) != 8:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a PING has eight bytes")
        _require(number == 0, "PING belongs to the connection")
        if not flags & Flag.ACK:
            if self._pings.add(self._loop.time(), PINGS_A_SECOND) > MOST_PINGS:
                raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many PINGs")
            self.sender.reply(frames.ping(bytes(payload), ack=True))
        elif self._goaway_ping and payload == self._goaway_ping:
            self._confirm_goaway()

    def _on_settings(self, number: int, flags: int, payload: memoryview) -> None:
        _require(number == 0, "SETTINGS belong to the connection")
        if len(payload) % frames.SETTING.size or (flags & Flag.ACK and payload):
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "settings have six bytes each")
        if flags & Flag.ACK:
            return
        for name, value in dict(frames.SETTING.iter_unpack(payload)).items():
            self._set(name, value)
        if not self._frames.settled:
            self._frames.settled = True
            if self._timer is not None and not self._leaving:
                self._timer.cancel()
        self.nothing()
        self.sender.reply(frames.SETTINGS_ACK)
        # Not before: until then the client holds streams to its old settings. And
        # once for all of them that are read at one time, as it looks at every stream.
        self._resettled = True

    def _set(self, name: int, value: int) -> None:
        match name:
            case Setting.HEADER_TABLE_SIZE:
                if value < DEFAULT_TABLE_BYTES:
                    self.sender.drop_table()
            case Setting.ENABLE_PUSH:
                _require(value in (0, 1), "a setting is neither 0 nor 1")
            case Setting.INITIAL_WINDOW_SIZE:
                self.sender.set_stream_window(value)
            case Setting.MAX_FRAME_SIZE:
                _require(
                    DEFAULT_FRAME_BYTES <= value <= LARGEST_FRAME_BYTES,
                    "the largest frame is out of range",
                )
                self.sender.set_frame_bytes(value)

    def _on_priority(self, number: int, payload: memoryview) -> None:
        _require(number != 0, "PRIORITY belongs to a stream")
        if len(payload) != 5:
            raise StreamError(ErrorCode.FRAME_SIZE_ERROR, "a priority has five bytes")
        require_other(number, payload)
        self.nothing()

    def _require_known(self, number: int) -> None:
        _require(number % 2 == 1 and number <= self._last, "the stream was never opened")

    def nothing(self) -> None:
        """Count a frame that carries nothing; see `reading.Receiver`."""
        self._empty += 1
        if self._empty > _MOST_EMPTY:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many frames carry nothing")

    # The ends of streams and of the connection.

    def _end_by_client(self, stream: Stream) -> None:
        stream.ended_by_client = True
        stream.ended()

    def _end(self, stream: Stream) -> None:
        """Forget a stream that was answered in full."""
        if not stream.ended_by_client:
            # What the client goes on to send would be for nobody (RFC 9113, section 8.1).
            self.sender.emit(frames.reset(stream.number, ErrorCode.NO_ERROR))
        self._forget(stream, by_us=not stream.ended_by_client)

    def _drop(self, stream: Stream) -> None:
        """Forget a stream that the client has given up."""
        self._forget(stream, by_us=False)
        stream.lost()

    def _forget(self, stream: Stream, *, by_us: bool) -> None:
        stream.closed = True
        self.sender.forget(stream)
        self.streams.pop(stream.number, None)
        self._remember(stream.number, by_us=by_us)
        if not self.streams:
            self.idle_since = self._loop.time()
            if self._leaving and not self._goaway_ping:
                self.close()
            else:
                # Nobody else has anything to say on this round of the loop.
                self.sender.flush()

    def _remember(self, number: int, *, by_us: bool) -> None:
        self._ended[number] = by_us
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def _fail_stream(self, number: int, error: StreamError) -> None:
        stream = self.streams.get(number)
        self.sender.reply(frames.reset(number, error.code))
        if stream is not None:
            self._forget(stream, by_us=True)
            stream.lost()
            self._count_reset()
        else:
            self._remember(number, by_us=True)

    def _fail(self, error: ProtocolError) -> None:
        self.sender.emit(frames.go_away(self._last, error.code, str(error)))
        self._goaway_ping = b""
        self.close()
        # It may not read that, either.
        self._loop.call_later(GOAWAY_SECONDS, self._give_up)

    def _confirm_goaway(self) -> None:
        """Go on with leaving: the client has read GOAWAY, or had the time to."""
        if not self._goaway_ping or self.transport.is_closing():
            return
        self._name_the_last()
        if not self.streams:
            self.close()

    def _name_the_last(self) -> None:
        """Say which stream is the last to be answered, where that has not been said."""
        if self._goaway_ping:
            self._goaway_ping = b""
            self.sender.emit(frames.go_away(self._last, ErrorCode.NO_ERROR))

    def _give_up(self) -> None:
        self.transport.abort()

    # Frames that go.


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, message)


def _number(payload: memoryview) -> int:
    if len(payload) != frames.NUMBER.size:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "the frame has four bytes")
    number: int = frames.NUMBER.unpack(payload)[0]
    return number
