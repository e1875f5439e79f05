"""Target: what the http2 transport reads, from bytes to frames, headers and messages."""

from collections.abc import Callable, Iterator

import atheris

with atheris.instrument_imports(include=["foveate_serve.transports.http2", "hpack"]):
    from hpack import Encoder

    from foveate_serve.transports.http2.frames import (
        PREFACE,
        ErrorCode,
        Flag,
        Kind,
        ProtocolError,
        StreamError,
    )
    from foveate_serve.transports.http2.headers import HeadReader
    from foveate_serve.transports.http2.messages import PREFIX, Assembler, MessageError
    from foveate_serve.transports.http2.reading import FrameReader

from .guided import fuzz

MESSAGE_BYTES = 16 << 10


class Events:
    """What a reader tells, as a list; the bytes of DATA are joined, as they may come in parts."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.messages: list[bytes] = []
        self.settle: Callable[[], None] = lambda: None
        self._headers = HeadReader()
        self._assembler: Assembler | None = Assembler(MESSAGE_BYTES, "gzip")
        self._data = b""

    def data_begins(self, number: int, size: int, *, ends: bool) -> None:
        self.told.append(("data", number, size, ends))

    def data(self, data: memoryview, *, last: bool) -> None:
        self._data += data
        self._read_messages(data)
        if last:
            self.told.append(("bytes", self._data))
            self._data = b""

    def _read_messages(self, data: memoryview) -> None:
        if self._assembler is None:
            return
        try:
            for message in self._assembler.feed(data):
                inflated = message.inflated(MESSAGE_BYTES)
                assert len(inflated) <= MESSAGE_BYTES
                self.messages.append(bytes(inflated))
        except MessageError:
            # The call ends, by the first fault of several that is seen.
            self.messages = [b"a fault"]
            self._assembler = None

    def padding(self, size: int) -> None:
        self.told.append(("padding", size))

    def headers(self, number: int, block: bytes, *, ends: bool) -> None:
        try:
            self.told.append(("headers", number, ends, self._headers.read(block)))
        except StreamError as error:
            self.told.append(("bad headers", number, str(error)))

    def frame(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        if kind == Kind.SETTINGS:
            self.settle()
        self.told.append((kind, flags, number, bytes(payload)))

    def nothing(self) -> None:
        self.told.append("nothing")


def read(parts: list[bytes]) -> list[object]:
    """Return what a reader tells of a connection that comes in these parts."""
    events = Events()
    reader = FrameReader(events)
    events.settle = lambda: setattr(reader, "settled", True)
    try:
        for part in parts:
            reader.feed(memoryview(part))
    except ProtocolError as error:
        events.told.append(("the end", ErrorCode(error.code)))
    return [*events.told, *events.messages]


def target(content: bytes) -> None:
    """Read a connection whole, and in two parts: that must not make a difference."""
    if not content:
        return
    stream = PREFACE + content[1:]
    cut = len(PREFACE) + content[0] * len(content) // 256
    whole, parted = read([stream]), read([stream[:cut], stream[cut:]])
    assert whole == parted


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4)
    return head + payload


def examples() -> Iterator[bytes]:
    """Yield connections that call, continue, repeat, reset and ask for settings."""
    call = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/foveate.v1.ClassifierService/Classify"),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("grpc-timeout", "100m"),
        ("some-bin", "AAAA,BBBB"),
    ]
    encoder = Encoder()
    first, second = encoder.encode(call), encoder.encode(call)
    settings = frame(Kind.SETTINGS, 0, 0, bytes.fromhex("000300000064"))
    message = PREFIX.pack(0, 5) + b"12345"
    yield b"\x00" + settings
    yield (
        b"\x80"
        + settings
        + frame(Kind.HEADERS, Flag.END_HEADERS, 1, first)
        + frame(Kind.DATA, Flag.END_STREAM, 1, message)
    )
    yield (
        b"\x40"
        + settings
        + b"".join(
            frame(Kind.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, number, block)
            for number, block in ((1, first), (3, second), (5, second))
        )
    )
    yield (
        b"\xc0"
        + settings
        + frame(Kind.HEADERS, 0, 1, first[:9])
        + frame(Kind.CONTINUATION, Flag.END_HEADERS, 1, first[9:])
    )
    yield (
        b"\xf0"
        + settings
        + frame(Kind.PING, 0, 0, bytes(8))
        + frame(Kind.RST_STREAM, 0, 1, bytes(4))
    )


if __name__ == "__main__":
    fuzz(target, examples())
