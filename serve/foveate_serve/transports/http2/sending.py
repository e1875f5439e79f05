"""What a connection of HTTP/2 sends: frames, within the windows of its client (RFC 9113)."""

import asyncio
from collections.abc import Callable, Iterable
from typing import cast

from foveate_serve.transports.http2 import frames
from foveate_serve.transports.http2.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW,
    FRAME_BYTES,
    LARGEST_WINDOW,
    ErrorCode,
    Flag,
    Kind,
    ProtocolError,
    StreamError,
)
from foveate_serve.transports.http2.stream import Stream

_MOST_REPLIES = 1 << 20
"""The limit of unsent answers to a client's PINGs and SETTINGS, in bytes."""
_MOST_UNSENT = 1 << 20
"""The most bytes that are written at one time, however large the client's windows are."""

_DROP_TABLE = b"\x20"
"""Sets the size of the dynamic table to 0 (RFC 7541, section 6.3); our blocks never use it."""


class Sender:
    """Writes frames together, and holds back the bytes that exceed the client's windows.

    All frames of one round of the event loop are written at once. `finished` is called
    with a stream after its last frame.
    """

    def __init__(self, finished: Callable[[Stream], None]) -> None:
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.window = DEFAULT_WINDOW
        """Bytes that the client takes on all streams together."""
        self.stream_window = DEFAULT_WINDOW
        """Bytes that it takes on a new stream."""
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._frame_bytes = DEFAULT_FRAME_BYTES
        self._table_update = b""
        self._blocked: dict[int, Stream] = {}
        self._out: list[bytes | memoryview] = []
        self._flushing = False
        self._unsent = 0
        self.waiting = 0
        """Bytes of answers in the outboxes of streams."""
        self._replied = 0
        self._paused = False
        self._callers: dict[asyncio.Future[None], None] = {}

    # For streams.

    def headers(self, stream: Stream, block: bytes) -> None:
        """Send a header block that does not end the stream."""
        if not stream.closed:
            self.emit(self._header_frames(stream.number, block, 0))

    def data(self, stream: Stream, data: bytes) -> None:
        """Send bytes, as soon as the windows allow it."""
        if not stream.closed:
            stream.outbox.append(memoryview(data))
            self.waiting += len(data)
            self._pump(stream)

    def finish(self, stream: Stream, block: bytes) -> None:
        """End the stream with a header block, after what was sent before."""
        if not stream.closed:
            stream.trailers = block
            self._pump(stream)

    def answer(self, stream: Stream, head: bytes, data: bytes, trailers: bytes) -> None:
        """Send a header block, bytes, and the block that ends the stream."""
        size, number = len(data), stream.number
        if stream.closed:
            return
        if (
            size > self._frame_bytes
            or size > self.window
            or size > self._room(stream)
            or len(head) + len(trailers) > self._frame_bytes
            or self._table_update
            or self._blocked
            or self._busy
        ):
            self.headers(stream, head)
            self.data(stream, data)
            self.finish(stream, trailers)
            return
        self.window -= size
        self.emit(
            b"".join(
                (
                    frames.head(Kind.HEADERS, Flag.END_HEADERS, number, len(head)),
                    head,
                    frames.head(Kind.DATA, 0, number, size),
                    data,
                    frames.head(
                        Kind.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, number, len(trailers)
                    ),
                    trailers,
                )
            )
        )
        self._finished(stream)

    async def drain(self, stream: Stream) -> None:
        """Wait until the bytes of a stream are written, or the stream is closed."""
        if (stream.outbox or self._paused) and not stream.closed:
            stream.drained = self._loop.create_future()
            await stream.drained

    @property
    def full(self) -> bool:
        """Whether answers wait for the client to read, on whatever stream they are."""
        return self.waiting > _MOST_UNSENT and (self.window <= 0 or self._busy)

    async def room(self) -> None:
        """Wait while it is `full`: an answer that is not made yet takes no memory."""
        while self.full:
            caller = self._loop.create_future()
            self._callers[caller] = None
            try:
                await caller
            finally:
                self._callers.pop(caller, None)

    # For the connection.

    def emit(self, data: bytes | memoryview) -> None:
        """Send bytes, together with what else is sent on this round of the loop."""
        self._out.append(data)
        self._unsent += len(data)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def reply(self, data: bytes) -> None:
        """Send the answer to a cheap request such as PING; raises ProtocolError above the limit."""
        if not self._paused:
            self._replied = 0
        self._replied += len(data)
        if self._replied > _MOST_REPLIES:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "the client does not read")
        self.emit(data)

    def flush(self) -> None:
        """Write what was sent since the last time."""
        self._flushing = False
        if self._out and not self.transport.is_closing():
            self.transport.write(b"".join(self._out))
        self._out.clear()
        self._unsent = 0
        if self._blocked or self._callers:
            self._pump_blocked()

    def pause(self) -> None:
        """Pause writing: the socket's buffer is full."""
        self._paused = True

    def resume(self, streams: Iterable[Stream]) -> None:
        """Resume writing: the socket's buffer has room."""
        self._paused = False
        self._pump_blocked()
        for stream in streams:
            self._tell_drained(stream)

    def forget(self, stream: Stream) -> None:
        """Discard the unsent bytes of a stream that is closed."""
        self.waiting -= sum(map(len, stream.outbox))
        stream.outbox.clear()
        self._blocked.pop(stream.number, None)
        self._tell_drained(stream)

    def clear(self) -> None:
        """Discard everything that is not written."""
        self._out.clear()

    # The client's windows and settings.

    def widen(self, size: int) -> None:
        """Widen the window of the connection by so many bytes; raises ProtocolError."""
        self.window += size
        if self.window > LARGEST_WINDOW:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "the window is too large")
        self._pump_blocked()

    def widen_stream(self, stream: Stream, size: int) -> None:
        """Widen the window of a stream by so many bytes; raises StreamError."""
        stream.send_window += size
        if self._room(stream) > LARGEST_WINDOW:
            raise StreamError(ErrorCode.FLOW_CONTROL_ERROR, "the window is too large")
        if stream.outbox:
            self._pump(stream)

    def set_stream_window(self, size: int) -> None:
        """Set the window of new and of open streams, in bytes; raises ProtocolError."""
        if size > LARGEST_WINDOW:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "the window is too large")
        self.stream_window = size

    def set_frame_bytes(self, size: int) -> None:
        """Send frames of so many bytes at most."""
        self._frame_bytes = min(size, FRAME_BYTES)

    def drop_table(self) -> None:
        """Begin the next header block with a table of size 0."""
        self._table_update = _DROP_TABLE

    def settled(self, streams: Iterable[Stream]) -> None:
        """Send the bytes that the new settings allow; raises ProtocolError."""
        for stream in streams:
            if self._room(stream) > LARGEST_WINDOW:
                raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is too large")
            if stream.outbox:
                self._pump(stream)

    def _room(self, stream: Stream) -> int:
        """Return how many bytes the client takes on a stream."""
        return self.stream_window + stream.send_window

    def _header_frames(self, number: int, block: bytes, flags: int) -> bytes:
        block, self._table_update = self._table_update + block, b""
        size = self._frame_bytes
        if len(block) <= size:
            return frames.head(Kind.HEADERS, flags | Flag.END_HEADERS, number, len(block)) + block
        parts = [block[start : start + size] for start in range(0, len(block), size)]
        kinds = [(Kind.HEADERS, flags), *[(Kind.CONTINUATION, 0)] * (len(parts) - 1)]
        kinds[-1] = kinds[-1][0], kinds[-1][1] | Flag.END_HEADERS
        return b"".join(
            frames.head(kind, its, number, len(part)) + part
            for (kind, its), part in zip(kinds, parts, strict=True)
        )

    @property
    def _busy(self) -> bool:
        """Whether the socket's buffer is full."""
        return self._paused or self._unsent > _MOST_UNSENT

    def _pump(self, stream: Stream) -> None:
        """Send the bytes of a stream that the windows allow."""
        while stream.outbox:
            own = self._room(stream)
            room = min(self.window, own, self._frame_bytes)
            chunk = stream.outbox[0]
            if chunk and own <= 0:
                return
            if chunk and (room <= 0 or self._busy):
                self._blocked[stream.number] = stream
                return
            part = chunk[:room]
            self.emit(frames.head(Kind.DATA, 0, stream.number, len(part)))
            self.emit(part)
            self.window -= len(part)
            stream.send_window -= len(part)
            self.waiting -= len(part)
            if len(part) == len(chunk):
                stream.outbox.popleft()
            else:
                stream.outbox[0] = chunk[room:]
        self._blocked.pop(stream.number, None)
        if stream.trailers is not None:
            self.emit(self._header_frames(stream.number, stream.trailers, Flag.END_STREAM))
            self._finished(stream)
        else:
            self._tell_drained(stream)

    def _pump_blocked(self) -> None:
        """Send the bytes that the connection's window held back; streams take turns."""
        while self._blocked and self.window > 0 and not self._busy:
            number = next(iter(self._blocked))
            self._pump(self._blocked.pop(number))
        if self._callers and not self.full:
            for caller in list(self._callers):
                if not caller.done():
                    caller.set_result(None)

    def _tell_drained(self, stream: Stream) -> None:
        waiter = stream.drained
        if waiter is not None and (stream.closed or not (stream.outbox or self._paused)):
            stream.drained = None
            if not waiter.done():
                waiter.set_result(None)
