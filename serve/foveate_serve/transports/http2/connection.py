"""One connection of HTTP/2, as a server sees it (RFC 9113).

The module does not depend on gRPC: `accept` makes a `Stream` for each stream of the
connection, and the `Stream` handles the bytes.
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
"""The time in which a client must send its preface and its SETTINGS."""

GOAWAY_SECONDS = 1.0
"""The time that a client has to answer the first GOAWAY; the second names the last stream."""

MOST_WAITING = 16 << 20
"""The unsent bytes of answers above which new streams of the client are refused."""

_KEEPALIVE = b"keepaliv"
MOST_RESETS = 1000
"""Streams that a client may reset at one time (CVE-2023-44487)."""
RESETS_A_SECOND = 33.0
"""How many more it may reset in each second."""
MOST_PINGS = 5000
PINGS_A_SECOND = 100.0
"""PINGs that a client may send at one time, and how many more in each second (CVE-2019-9512)."""
_MOST_EMPTY = 10_000
"""The most frames without content between two new streams. Padding does not need so many."""
_KEPT_ENDS = 1024
"""The most ended streams whose numbers are kept: their frames may arrive after the end."""

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
    """Handles the frames that the client sends; `sender` writes the server's frames.

    `accept` makes the stream of a call from its head. The socket is read into
    `buffer`. All connections of an event loop may share it, because its content is
    consumed at once. More than `max_streams` streams at one time are refused with
    REFUSED_STREAM, after which HTTP/2 lets a client try again at once.
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
        """The number of the connection within its server."""
        self.counts = Counts()
        self.streams: dict[int, Stream] = {}
        self.running = 0
        """How many handlers run, including those of streams that the client has reset."""
        self.held = 0
        """Bytes of messages that no handler has read yet."""
        self.sender = Sender(finished=self._end)
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.received_at = self.idle_since = self._loop.time()
        """When bytes were last received, and when the last stream ended, by the loop's clock."""
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

    # Methods that asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send SETTINGS and the window of the connection, and start the handshake's timer."""
        self.transport = self.sender.transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # TCP keepalive detects a peer that disappeared without closing.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._timer = self._loop.call_later(HANDSHAKE_SECONDS, self.abort)
        self._opened(self)
        self.sender.emit(
            frames.settings({Setting.MAX_CONCURRENT_STREAMS: self._max_streams, **_OUR_SETTINGS})
        )
        self.sender.emit(frames.window_update(0, CONNECTION_WINDOW - DEFAULT_WINDOW))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        """Return the buffer to read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Process the bytes that were read."""
        self.received_at = self._loop.time()
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
        """Pause writing: the socket's buffer is full."""
        self.sender.pause()

    def resume_writing(self) -> None:
        """Resume writing: the socket's buffer has room."""
        self.sender.resume(list(self.streams.values()))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Cancel the calls that are not answered."""
        if self._timer is not None:
            self._timer.cancel()
        self.sender.clear()
        for stream in list(self.streams.values()):
            self._drop(stream)
        self._closed(self)

    # Methods that streams call.

    def credit(self, stream: Stream, size: int) -> None:
        """Allow the client `size` more bytes; half a window of them makes one WINDOW_UPDATE."""
        stream.owed += size
        if stream.owed >= STREAM_WINDOW // 2 and not (stream.ended_by_client or stream.closed):
            stream.receive_window += stream.owed
            self.sender.emit(frames.window_update(stream.number, stream.owed))
            stream.owed = 0

    # Methods that the server calls.

    def go_away(self) -> None:
        """Send GOAWAY, and close once the open streams have ended."""
        if self._leaving or self.transport.is_closing():
            return
        self._leaving = True
        # Streams that it opens before it reads GOAWAY are answered (RFC 9113, section 6.8).
        self._goaway_ping = b"goaway 1"
        self.sender.emit(frames.go_away(LARGEST_STREAM, ErrorCode.NO_ERROR))
        self.sender.emit(frames.ping(self._goaway_ping, ack=False))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(GOAWAY_SECONDS, self._confirm_goaway)

    def cut_off(self) -> None:
        """Cancel the running calls, and close once their statuses are sent."""
        for stream in list(self.streams.values()):
            stream.cut_off()
        # The client may not read them.
        self._loop.call_later(GOAWAY_SECONDS, self.abort)

    def ping(self) -> None:
        """Send a keepalive PING."""
        self.sender.emit(frames.ping(_KEEPALIVE, ack=False))

    def close(self) -> None:
        """Close once the pending bytes are written."""
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
        """How many bytes the client may send on all streams together."""
        return self._receive_window

    # Frames of the client.

    def headers(self, number: int, block: bytes, *, ends: bool) -> None:
        """Handle a header block; see `reading.Receiver`."""
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
        """Handle a frame of another kind than headers and data; see `reading.Receiver`."""
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
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a client sends no PUSH_PROMISE")
            case _:
                self.nothing()  # frames of extensions are ignored

    def _on_late_headers(self, number: int, block: bytes) -> None:
        self._reader.skip(block)
        if number not in self._ended:
            raise ProtocolError(
                ErrorCode.PROTOCOL_ERROR, "the number of a new stream is not above the last one"
            )
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
            # The second GOAWAY has named an earlier stream as the last.
            self._keep_end(number, by_us=True)
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
        """Count a DATA frame against the windows; see `reading.Receiver`."""
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
        """Return the stream that receives so many bytes; None where the server has ended it."""
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
        """Pass bytes of the current DATA frame to their stream; see `reading.Receiver`."""
        stream = self._data_stream
        if stream is None:
            return
        if data and not stream.closed:
            stream.received(data)
        if last and self._data_ends and not stream.closed:
            self._end_by_client(stream)

    def padding(self, size: int) -> None:
        """Credit the padding of a DATA frame; see `reading.Receiver`."""
        if self._data_stream is not None:
            self.credit(self._data_stream, size)

    def _on_window_update(self, number: int, payload: memoryview) -> None:
        size = _number(payload) & LARGEST_WINDOW
        if number == 0:
            _require(size > 0, "the increment of a window is 0")
            self.sender.widen(size)
            return
        self._require_known(number)
        stream = self.streams.get(number)
        if size == 0:
            raise StreamError(ErrorCode.PROTOCOL_ERROR, "the increment of a window is 0")
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
        """Count a stream that is reset before its answer: the server has worked for nothing.

        A client may reset it, or break the protocol so that the server must reset it
        (CVE-2025-8671). Both count.
        """
        if self._resets.add(self._loop.time(), RESETS_A_SECOND) > MOST_RESETS:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many streams are reset")

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
        # The new windows apply after the acknowledgement: until then the client uses its
        # old settings. They are applied once a read, because that visits every stream.
        self._resettled = True

    def _set(self, name: int, value: int) -> None:
        match name:
            case Setting.HEADER_TABLE_SIZE:
                if value < DEFAULT_TABLE_BYTES:
                    self.sender.drop_table()
            case Setting.ENABLE_PUSH:
                _require(value in (0, 1), "ENABLE_PUSH is neither 0 nor 1")
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
        """Count an empty frame; see `reading.Receiver`."""
        self._empty += 1
        if self._empty > _MOST_EMPTY:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many frames carry nothing")

    # The ends of streams and of the connection.

    def _end_by_client(self, stream: Stream) -> None:
        stream.ended_by_client = True
        stream.ended()

    def _end(self, stream: Stream) -> None:
        """Close a stream whose answer is complete."""
        if not stream.ended_by_client:
            # The rest of the request is not needed (RFC 9113, section 8.1).
            self.sender.emit(frames.reset(stream.number, ErrorCode.NO_ERROR))
        self._close_stream(stream, by_us=not stream.ended_by_client)

    def _drop(self, stream: Stream) -> None:
        """Close a stream that the client has reset."""
        self._close_stream(stream, by_us=False)
        stream.lost()

    def _close_stream(self, stream: Stream, *, by_us: bool) -> None:
        stream.closed = True
        self.sender.forget(stream)
        self.streams.pop(stream.number, None)
        self._keep_end(stream.number, by_us=by_us)
        if not self.streams:
            self.idle_since = self._loop.time()
            if self._leaving and not self._goaway_ping:
                self.close()
            else:
                # No other stream sends in this round of the loop.
                self.sender.flush()

    def _keep_end(self, number: int, *, by_us: bool) -> None:
        self._ended[number] = by_us
        if len(self._ended) > _KEPT_ENDS:
            del self._ended[next(iter(self._ended))]

    def _fail_stream(self, number: int, error: StreamError) -> None:
        stream = self.streams.get(number)
        self.sender.reply(frames.reset(number, error.code))
        if stream is not None:
            self._close_stream(stream, by_us=True)
            stream.lost()
            self._count_reset()
        else:
            self._keep_end(number, by_us=True)

    def _fail(self, error: ProtocolError) -> None:
        self.sender.emit(frames.go_away(self._last, error.code, str(error)))
        self._goaway_ping = b""
        self.close()
        # The client may not read GOAWAY.
        self._loop.call_later(GOAWAY_SECONDS, self.abort)

    def _confirm_goaway(self) -> None:
        """Send the second GOAWAY: the client has read the first, or the time for that is over."""
        if not self._goaway_ping or self.transport.is_closing():
            return
        self._name_the_last()
        if not self.streams:
            self.close()

    def _name_the_last(self) -> None:
        """Send the second GOAWAY, which names the last stream, unless it was sent."""
        if self._goaway_ping:
            self._goaway_ping = b""
            self.sender.emit(frames.go_away(self._last, ErrorCode.NO_ERROR))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, message)


def _number(payload: memoryview) -> int:
    if len(payload) != frames.NUMBER.size:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "the frame has four bytes")
    number: int = frames.NUMBER.unpack(payload)[0]
    return number
