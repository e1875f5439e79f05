"""Cuts what a client sends into frames (RFC 9113, section 4), without a socket."""

from typing import Protocol

from foveate_serve.transports.http2.frames import (
    DEFAULT_FRAME_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    LARGEST_STREAM,
    NUMBER,
    PREFACE,
    ErrorCode,
    Flag,
    Kind,
    ProtocolError,
)
from foveate_serve.transports.http2.headers import MAX_LIST_BYTES

_BLOCK_BYTES = 2 * MAX_LIST_BYTES
_MOST_BYTES = {
    Kind.DATA: FRAME_BYTES,
    Kind.HEADERS: _BLOCK_BYTES,
    Kind.CONTINUATION: _BLOCK_BYTES,
}
"""The limit of a frame's payload, by its kind. Payloads other than DATA are buffered whole."""


class Receiver(Protocol):
    """Handles frames; every method may raise ProtocolError."""

    def data_begins(self, number: int, size: int, *, ends: bool) -> None:
        """Handle the start of a DATA frame of so many bytes, padding included."""

    def data(self, data: memoryview, *, last: bool) -> None:
        """Handle bytes of that frame, valid until this returns."""

    def padding(self, size: int) -> None:
        """Handle the padding of that frame, so many bytes."""

    def headers(self, number: int, block: bytes, *, ends: bool) -> None:
        """Handle a whole header block."""

    def frame(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        """Handle a frame of another kind, valid until this returns."""

    def nothing(self) -> None:
        """Handle a frame without content."""


class FrameReader:
    """Passes the frames in the bytes of `feed` to `receiver`; the bytes may be cut anywhere.

    The preface comes first, then SETTINGS. The receiver sets `settled` when it has applied
    them; no other frame may come before.
    """

    def __init__(self, receiver: Receiver) -> None:
        self.settled = False
        self._receiver = receiver
        self._preface = PREFACE
        self._carry = bytearray()
        self._wanted = 0
        self._data_left = 0
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_ends = False

    def feed(self, data: memoryview) -> None:
        """Read the frames in `data`, and keep an incomplete one; raises ProtocolError."""
        if self._carry:
            self._carry += data
            if len(self._carry) < self._wanted:
                return
            data, self._carry = memoryview(self._carry), bytearray()
        if self._preface:
            data = self._read_preface(data)
        position = self._take(data)
        if position < len(data):
            self._carry += data[position:]

    def _read_preface(self, data: memoryview) -> memoryview:
        """Check the preface as far as it is there, and return the bytes behind it."""
        size = min(len(self._preface), len(data))
        if data[:size] != self._preface[:size]:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "the preface is not that of HTTP/2")
        self._preface = self._preface[size:]
        return data[size:]

    def _take(self, data: memoryview) -> int:
        """Read the complete frames, and return where the rest begins."""
        position, end = 0, len(data)
        while position < end:
            if self._data_left:
                size = min(self._data_left, end - position)
                self._data_left -= size
                self._receiver.data(data[position : position + size], last=not self._data_left)
                position += size
                continue
            start = position + HEADER_BYTES
            if end < start:
                self._wanted = HEADER_BYTES
                break
            size = data[position] << 16 | data[position + 1] << 8 | data[position + 2]
            kind, flags = data[position + 3], data[position + 4]
            number = int.from_bytes(data[position + 5 : start]) & LARGEST_STREAM
            self._check(kind, size, number)
            if kind == Kind.DATA and not flags & Flag.PADDED:
                position = start
                self._begin_data(flags, number, size)
                continue
            if end - start < size:
                self._wanted = HEADER_BYTES + size
                break
            position = start + size
            self._frame(kind, flags, number, data[start:position])
        return position

    def _check(self, kind: int, size: int, number: int) -> None:
        """Check the head of a frame."""
        if size > _MOST_BYTES.get(kind, DEFAULT_FRAME_BYTES):
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "the frame is too large")
        if not self.settled and kind != Kind.SETTINGS:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "the settings are missing")
        if self._block is not None and (kind != Kind.CONTINUATION or number != self._block_stream):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted")

    def _begin_data(self, flags: int, number: int, size: int) -> None:
        self._receiver.data_begins(number, size, ends=bool(flags & Flag.END_STREAM))
        self._data_left = size
        if not size:
            self._receiver.data(memoryview(b""), last=True)

    def _frame(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        match kind:
            case Kind.DATA:
                data = _unpadded(flags, payload)
                self._receiver.data_begins(number, len(payload), ends=bool(flags & Flag.END_STREAM))
                self._receiver.data(data, last=True)
                self._receiver.padding(len(payload) - len(data))
            case Kind.HEADERS:
                self._on_headers(number, flags, payload)
            case Kind.CONTINUATION:
                self._on_continuation(flags, payload)
            case _:
                self._receiver.frame(kind, flags, number, payload)

    def _on_headers(self, number: int, flags: int, payload: memoryview) -> None:
        payload = _unpadded(flags, payload)
        if number % 2 == 0:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a client's streams have odd numbers")
        if flags & Flag.PRIORITY:
            if len(payload) < 5:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a priority has five bytes")
            require_other(number, payload)
            payload = payload[5:]
        self._block = bytearray(payload)
        self._block_stream = number
        self._block_ends = bool(flags & Flag.END_STREAM)
        self._end_block(flags)

    def _on_continuation(self, flags: int, payload: memoryview) -> None:
        if self._block is None:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION follows no header block")
        if not payload:
            self._receiver.nothing()
        self._block += payload
        self._end_block(flags)

    def _end_block(self, flags: int) -> None:
        block = self._block
        assert block is not None  # noqa: S101 - a frame of it has come
        if len(block) > _BLOCK_BYTES:
            raise ProtocolError(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"the header block is too large; the limit is {_BLOCK_BYTES} bytes",
            )
        if flags & Flag.END_HEADERS:
            self._block = None
            self._receiver.headers(self._block_stream, bytes(block), ends=self._block_ends)


def require_other(number: int, priority: memoryview) -> None:
    """Check a stream's priority; raises ProtocolError."""
    if NUMBER.unpack(priority[:4])[0] & LARGEST_STREAM == number:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a stream does not depend on itself")


def _unpadded(flags: int, payload: memoryview) -> memoryview:
    if not flags & Flag.PADDED:
        return payload
    if not payload:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "the length of the padding is missing")
    padding = payload[0]
    if padding >= len(payload):
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "the padding is longer than the frame")
    return payload[1 : len(payload) - padding]
