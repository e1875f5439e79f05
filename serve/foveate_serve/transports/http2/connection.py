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
    HEADER_BYTES,
    LARGEST_FRAME_BYTES,
    LARGEST_STREAM,
    LARGEST_WINDOW,
    PREFACE,
    ErrorCode,
    Flag,
    Kind,
    ProtocolError,
    Setting,
    StreamError,
)
from foveate_serve.transports.http2.headers import MAX_LIST_BYTES, Head, HeadReader, check_trailers
from foveate_serve.transports.http2.sending import FRAME_BYTES, Sender
from foveate_serve.transports.http2.stream import STREAM_WINDOW, Stream

CONNECTION_WINDOW = 16 << 20

HANDSHAKE_SECONDS = 20.0
"""What a client gets to say that it speaks HTTP/2."""

GOODBYE_SECONDS = 1.0
"""What a client gets to hear that it should open no stream any more."""

_KEEPALIVE = b"alive?  "
_BLOCK_BYTES = 2 * MAX_LIST_BYTES
_MOST_EMPTY = 10_000
"""Frames that carry nothing, between two streams: padding is no reason for as many."""
_REMEMBERED = 1024
"""Streams whose end is remembered: frames may be on their way when one ends."""

_OUR_SETTINGS = {
    Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
    Setting.MAX_FRAME_SIZE: FRAME_BYTES,
    Setting.MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES,
}


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

        self._carry = b""
        self._expected = PREFACE
        self._settled = False
        self._data_left = 0
        self._data_stream: Stream | None = None
        self._data_ends = False
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_ends = False
        self._last = 0
        self._ended: dict[int, bool] = {}
        self._empty = 0
        self._unacknowledged = 0
        self._receive_window = CONNECTION_WINDOW
        self._leaving = False
        self._goodbye = b""
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
        data = self._buffer[:nbytes]
        if self._carry:
            data = memoryview(self._carry + data)
            self._carry = b""
        try:
            if self._expected:
                data = self._greet(data)
            position = self._take(data)
        except ProtocolError as error:
            self._fail(error)
            return
        if position < len(data):
            self._carry = bytes(data[position:])

    def pause_writing(self) -> None:
        """Hear that the client does not read as fast as it is answered."""
        self.sender.pause()

    def resume_writing(self) -> None:
        """Hear that it has caught up."""
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
        # What it opened before it hears this is answered still (RFC 9113, section 6.8).
        self._goodbye = b"goodbye!"
        self.sender.emit(frames.go_away(LARGEST_STREAM, ErrorCode.NO_ERROR))
        self.sender.emit(frames.ping(self._goodbye, ack=False))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(GOODBYE_SECONDS, self._heard)

    def cut_off(self) -> None:
        """Cancel what is worked on, and close once that has been told."""
        for stream in list(self.streams.values()):
            stream.cut_off()
        # It may have no room for what it is told.
        self._loop.call_later(GOODBYE_SECONDS, self._give_up)

    def ping(self) -> None:
        """Ask the client for a sign of life."""
        self.sender.emit(frames.ping(_KEEPALIVE, ack=False))

    def close(self) -> None:
        """Close once what was sent has left."""
        self._name_the_last()
        self.sender.flush()
        self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()

    @property
    def receive_window(self) -> int:
        """How many bytes the client may send in all."""
        return self._receive_window

    # Frames that come.

    def _greet(self, data: memoryview) -> memoryview:
        """Take as much of the preface as is there, and return the rest."""
        size = min(len(self._expected), len(data))
        if data[:size] != self._expected[:size]:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "the preface is not that of HTTP/2")
        self._expected = self._expected[size:]
        return data[size:]

    def _take(self, data: memoryview) -> int:
        """Take the frames that are there, and return where the rest begins."""
        position, end = 0, len(data)
        while position < end:
            if self._data_left:
                size = min(self._data_left, end - position)
                self._data(data[position : position + size])
                position += size
                continue
            if end - position < HEADER_BYTES:
                break
            size = data[position] << 16 | data[position + 1] << 8 | data[position + 2]
            kind, flags = data[position + 3], data[position + 4]
            number = int.from_bytes(data[position + 5 : position + 9]) & LARGEST_STREAM
            if size > FRAME_BYTES:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "the frame is too large")
            if not self._settled and kind != Kind.SETTINGS:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "the settings are missing")
            if self._block is not None and (
                kind != Kind.CONTINUATION or number != self._block_stream
            ):
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted")
            if kind == Kind.DATA and not flags & Flag.PADDED:
                position += HEADER_BYTES
                self._begin_data(number, size, ends=bool(flags & Flag.END_STREAM))
                continue
            if end - position - HEADER_BYTES < size:
                break
            start = position + HEADER_BYTES
            position = start + size
            try:
                self._frame(kind, flags, number, data[start:position])
            except StreamError as error:
                self._fail_stream(number, error)
        return position

    def _frame(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        match kind:
            case Kind.HEADERS:
                self._on_headers(number, flags, payload)
            case Kind.CONTINUATION:
                self._on_continuation(flags, payload)
            case Kind.DATA:
                self._on_padded_data(number, flags, payload)
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
                self._count_empty()  # of an extension, to be ignored

    def _on_headers(self, number: int, flags: int, payload: memoryview) -> None:
        payload = _unpadded(flags, payload)
        _require(number % 2 == 1, "a client's streams have odd numbers")
        if flags & Flag.PRIORITY:
            if len(payload) < 5:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a priority has five bytes")
            _require_other(number, payload)
            payload = payload[5:]
        self._block = bytearray(payload)
        self._block_stream = number
        self._block_ends = bool(flags & Flag.END_STREAM)
        self._end_block(flags)

    def _on_continuation(self, flags: int, payload: memoryview) -> None:
        if self._block is None:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "no header block is to be continued")
        if not payload:
            self._count_empty()
        self._block += payload
        self._end_block(flags)

    def _end_block(self, flags: int) -> None:
        assert self._block is not None  # noqa: S101 - a frame of it has come
        if len(self._block) > _BLOCK_BYTES:
            raise ProtocolError(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"the header block is too large; the limit is {_BLOCK_BYTES} bytes",
            )
        if not flags & Flag.END_HEADERS:
            return
        block, self._block = bytes(self._block), None
        number, stream = self._block_stream, self.streams.get(self._block_stream)
        if stream is not None:
            self._on_trailers(stream, block)
        elif number > self._last:
            self._open(number, block)
        else:
            self._reader.skip(block)
            if number not in self._ended:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a stream's number goes down")
            if not self._ended[number]:
                raise ProtocolError(ErrorCode.STREAM_CLOSED, "the stream has ended")

    def _on_trailers(self, stream: Stream, block: bytes) -> None:
        fields = self._reader.skip(block)
        if stream.ended_by_client:
            raise StreamError(ErrorCode.STREAM_CLOSED, "the client has ended the stream")
        check_trailers(fields)
        if not self._block_ends:
            raise StreamError(ErrorCode.PROTOCOL_ERROR, "headers within a stream must end it")
        self._end_by_client(stream)

    def _open(self, number: int, block: bytes) -> None:
        self._last = number
        if self._leaving and not self._goodbye:
            # The client has been told that this one is not answered.
            self._remember(number, by_us=True)
            self._reader.read(block)
            return
        self._empty = 0
        head = self._reader.read(block)
        if max(self.running, len(self.streams)) >= self._max_streams:
            raise StreamError(ErrorCode.REFUSED_STREAM, "the client has too many streams")
        self.counts.started += 1
        self.counts.last_started = time.time()
        stream = self.streams[number] = self._accept(self, number, head)
        if self._block_ends:
            self._end_by_client(stream)

    def _begin_data(self, number: int, size: int, *, ends: bool) -> None:
        """Account for a DATA frame whose bytes are about to come."""
        self._receive_window -= size
        if self._receive_window < 0:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is full")
        self._unacknowledged += size
        if self._unacknowledged >= CONNECTION_WINDOW // 2:
            self._receive_window += self._unacknowledged
            self.sender.emit(frames.window_update(0, self._unacknowledged))
            self._unacknowledged = 0
        self._data_left, self._data_ends = size, ends
        self._data_stream = None
        try:
            self._data_stream = self._receiver(number, size)
        except StreamError as error:
            self._fail_stream(number, error)
        if not size:
            if not ends:
                self._count_empty()
            self._data(memoryview(b""))

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

    def _data(self, data: memoryview) -> None:
        """Take bytes of the DATA frame at hand."""
        self._data_left -= len(data)
        stream = self._data_stream
        if stream is None:
            return
        if data and not stream.closed:
            stream.received(data)
        if not self._data_left and self._data_ends and not stream.closed:
            self._end_by_client(stream)

    def _on_padded_data(self, number: int, flags: int, payload: memoryview) -> None:
        data = _unpadded(flags, payload)
        padding = len(payload) - len(data)
        self._begin_data(number, len(payload), ends=bool(flags & Flag.END_STREAM))
        stream = self._data_stream
        self._data_left = len(data)
        self._data(data)
        if stream is not None:
            self.credit(stream, padding)

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
            self._drop(stream)

    def _on_ping(self, number: int, flags: int, payload: memoryview) -> None:
        if len(payload) != 8:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a PING has eight bytes")
        _require(number == 0, "PING belongs to the connection")
        if not flags & Flag.ACK:
            self.sender.reply(frames.ping(bytes(payload), ack=True))
        elif self._goodbye and payload == self._goodbye:
            self._heard()

    def _on_settings(self, number: int, flags: int, payload: memoryview) -> None:
        _require(number == 0, "SETTINGS belong to the connection")
        if len(payload) % frames.SETTING.size or (flags & Flag.ACK and payload):
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "settings have six bytes each")
        if flags & Flag.ACK:
            return
        for name, value in dict(frames.SETTING.iter_unpack(payload)).items():
            self._set(name, value)
        if not self._settled:
            self._settled = True
            if self._timer is not None and not self._leaving:
                self._timer.cancel()
        self.sender.reply(frames.SETTINGS_ACK)
        # Not before: until then the client holds streams to its old settings.
        self.sender.settled(list(self.streams.values()))

    def _set(self, name: int, value: int) -> None:
        match name:
            case Setting.HEADER_TABLE_SIZE:
                if value < DEFAULT_TABLE_BYTES:
                    self.sender.drop_table()
            case Setting.ENABLE_PUSH:
                _require(value in (0, 1), "a setting is neither 0 nor 1")
            case Setting.INITIAL_WINDOW_SIZE:
                self.sender.set_stream_window(value, self.streams.values())
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
        _require_other(number, payload)
        self._count_empty()

    def _require_known(self, number: int) -> None:
        _require(number % 2 == 1 and number <= self._last, "the stream was never opened")

    def _count_empty(self) -> None:
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
            if self._leaving and not self._goodbye:
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
        else:
            self._remember(number, by_us=True)

    def _fail(self, error: ProtocolError) -> None:
        self.sender.emit(frames.go_away(self._last, error.code, str(error)))
        self._carry = b""
        self._data_left = 0
        self._goodbye = b""
        self.close()
        # It may not read that, either.
        self._loop.call_later(GOODBYE_SECONDS, self._give_up)

    def _heard(self) -> None:
        """Go on with leaving: the client has heard of it, or had the time to."""
        if not self._goodbye or self.transport.is_closing():
            return
        self._name_the_last()
        if not self.streams:
            self.close()

    def _name_the_last(self) -> None:
        """Say which stream is the last to be answered, where that has not been said."""
        if self._goodbye:
            self._goodbye = b""
            self.sender.emit(frames.go_away(self._last, ErrorCode.NO_ERROR))

    def _give_up(self) -> None:
        self.transport.abort()

    # Frames that go.


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, message)


def _require_other(number: int, priority: memoryview) -> None:
    depends_on = int.from_bytes(priority[:4]) & LARGEST_STREAM
    _require(depends_on != number, "a stream does not depend on itself")


def _number(payload: memoryview) -> int:
    if len(payload) != frames.NUMBER.size:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "the frame has four bytes")
    number: int = frames.NUMBER.unpack(payload)[0]
    return number


def _unpadded(flags: int, payload: memoryview) -> memoryview:
    if not flags & Flag.PADDED:
        return payload
    if not payload:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "the length of the padding is missing")
    padding = payload[0]
    if padding >= len(payload):
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "the padding is longer than the frame")
    return payload[1 : len(payload) - padding]
