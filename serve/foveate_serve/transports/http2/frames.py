"""The frames of HTTP/2 (RFC 9113, sections 4 and 6): their numbers, and how they are written."""

from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
LARGEST_WINDOW = 2**31 - 1
LARGEST_STREAM = 2**31 - 1
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_BYTES = 16_384
FRAME_BYTES = 1 << 20
"""The largest frame of DATA that is sent or accepted: most pictures fit into one."""
LARGEST_FRAME_BYTES = 2**24 - 1
DEFAULT_TABLE_BYTES = 4096

SETTING = Struct(">HI")
NUMBER = Struct(">I")
PAIR = Struct(">II")
_HEADER = Struct(">HBBBI")


# Plain numbers: to compare with a member of an enum takes several times as long.


class Kind:
    """The type of a frame."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag:
    """The flags of a frame; ACK is that of SETTINGS and PING."""

    ACK = 0x1
    END_STREAM = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


class Setting(IntEnum):
    """The identifier of a setting."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ErrorCode(IntEnum):
    """Why a stream or a connection ended."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ProtocolError(Exception):
    """The peer broke the protocol in a way that ends its connection."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class StreamError(Exception):
    """The peer broke the protocol in a way that ends one stream."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def head(kind: int, flags: int, stream: int, size: int) -> bytes:
    """Return the nine bytes before a payload of `size` bytes."""
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream)


def settings(values: dict[Setting, int]) -> bytes:
    """Return a SETTINGS frame."""
    payload = b"".join(SETTING.pack(name, value) for name, value in values.items())
    return head(Kind.SETTINGS, 0, 0, len(payload)) + payload


def window_update(stream: int, size: int) -> bytes:
    """Return a frame that lets the peer send `size` more bytes."""
    return head(Kind.WINDOW_UPDATE, 0, stream, 4) + NUMBER.pack(size)


def reset(stream: int, code: ErrorCode) -> bytes:
    """Return the frame that ends a stream."""
    return head(Kind.RST_STREAM, 0, stream, 4) + NUMBER.pack(code)


def go_away(last: int, code: ErrorCode, message: str = "") -> bytes:
    """Return the frame that ends a connection after the stream `last`."""
    text = message.encode()
    return head(Kind.GOAWAY, 0, 0, 8 + len(text)) + PAIR.pack(last, code) + text


def ping(payload: bytes, *, ack: bool) -> bytes:
    """Return a PING of eight bytes, or the answer to one."""
    return head(Kind.PING, Flag.ACK if ack else 0, 0, len(payload)) + payload


SETTINGS_ACK = head(Kind.SETTINGS, Flag.ACK, 0, 0)
