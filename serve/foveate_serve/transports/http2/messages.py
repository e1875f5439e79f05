"""The messages in the bytes of a stream: a flag, a length and so many bytes each."""

import zlib
from collections.abc import Mapping
from struct import Struct

import grpc

PREFIX = Struct(">BI")

_WINDOW_BITS: Mapping[str, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_AT_ONCE = 64 << 10
"""The most bytes that a message is inflated to on the event loop: more would block it too long."""
ENCODINGS = ("identity", "deflate", "gzip")
"""The encodings of a client's messages."""


class MessageError(Exception):
    """A message that is refused, with the status of its call."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class Assembler:
    """Splits bytes into messages of at most `limit` bytes, compressed with `encoding` or not."""

    def __init__(self, limit: int, encoding: str) -> None:
        self._limit = limit
        self._encoding = encoding
        self._prefix = b""
        self._compressed = False
        self._left = 0
        self._body: bytearray | None = None

    @property
    def within(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._body is not None or bool(self._prefix)

    def feed(self, data: memoryview) -> "list[Message]":
        """Take bytes, and return the messages that they complete; raises MessageError."""
        messages: list[Message] = []
        position, end = 0, len(data)
        while position < end:
            if self._body is None:
                position = self._begin(data, position)
                if self._body is None:
                    break
            taken = min(self._left, end - position)
            self._body += data[position : position + taken]
            self._left -= taken
            position += taken
            self._finish(messages)
        return messages

    def _begin(self, data: memoryview, position: int) -> int:
        """Read the bytes before a message, as far as they are there."""
        taken = PREFIX.size - len(self._prefix)
        self._prefix += bytes(data[position : position + taken])
        if len(self._prefix) == PREFIX.size:
            flag, length = PREFIX.unpack(self._prefix)
            self._prefix = b""
            self._compressed = self._is_compressed(flag)
            if length > self._limit:
                raise too_large(length, self._limit)
            self._left, self._body = length, bytearray()
        return position + taken

    def _finish(self, messages: "list[Message]") -> None:
        if self._body is not None and not self._left:
            messages.append(Message(self._body, self._encoding if self._compressed else ""))
            self._body = None

    def _is_compressed(self, flag: int) -> bool:
        if flag > 1:
            raise MessageError(grpc.StatusCode.INTERNAL, "a message's flag is neither 0 nor 1")
        if flag and self._encoding == "identity":
            raise MessageError(
                grpc.StatusCode.INTERNAL, "a message is compressed, and grpc-encoding is missing"
            )
        return bool(flag)


class Message:
    """A message as it came, compressed where `encoding` is not empty."""

    __slots__ = ("body", "encoding")

    def __init__(self, body: bytearray, encoding: str = "") -> None:
        self.body = body
        self.encoding = encoding

    def inflated_at_once(self, limit: int) -> bytes | None:
        """Return the message's bytes, None where inflating them may block the loop."""
        few = min(limit, _AT_ONCE)
        data, ended = self._inflated(few)
        return data if ended and len(data) <= few else None

    def inflated(self, limit: int) -> bytearray | bytes:
        """Return the message's bytes; raises MessageError where they are more than `limit`."""
        if not self.encoding:
            return self.body
        data, ended = self._inflated(limit)
        if len(data) > limit:
            raise too_large(None, limit)
        if not ended:
            raise MessageError(grpc.StatusCode.INTERNAL, f"a message is no whole {self.encoding}")
        return data

    def _inflated(self, limit: int) -> tuple[bytes, bool]:
        """Return at most `limit` + 1 of the bytes, and whether the message ends there."""
        inflate = zlib.decompressobj(_WINDOW_BITS[self.encoding])
        try:
            return inflate.decompress(self.body, limit + 1), inflate.eof
        except zlib.error as error:
            raise MessageError(
                grpc.StatusCode.INTERNAL, f"a message is no {self.encoding}"
            ) from error


def too_large(size: int | None, limit: int) -> MessageError:
    """Return the error of a message of `size` bytes; None is more than `limit` after inflating."""
    # In the words of gRPC's own servers: clients distinguish this from an overload by them.
    found = f"more than {limit}" if size is None else str(size)
    return MessageError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"Received message larger than max ({found} vs. {limit}), which is max_message_bytes",
    )
