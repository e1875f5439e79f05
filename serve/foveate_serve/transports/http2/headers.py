"""The header blocks of calls: HPACK (RFC 7541) as gRPC uses it."""

import base64
import binascii
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from hpack import Decoder, HPACKError, OversizedHeaderListError

from foveate_serve.transports.http2.frames import ErrorCode, ProtocolError, StreamError

# It logs every header at the level debug, and tokens with them.
logging.getLogger("hpack").setLevel(logging.WARNING)

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]

MAX_LIST_BYTES = 32 << 10
"""The limit of a call's headers, counted as in RFC 9113, section 6.5.2."""

MAX_FIELDS = 256
"""The most headers of a call: a byte may be one, and takes five microseconds to read."""

_MOST_RESIZES = 2
"""Changes of the table's size in a block: the smallest and the last (RFC 7541, section 4.2)."""

_KEPT_BLOCKS = 64
_KEPT_BYTES = 2 * MAX_LIST_BYTES
"""The limit of the headers in these blocks: they may be many times as long as the blocks."""
_MOST_JOINED = 64
"""The most values of binary metadata, joined by commas, in the headers of one call."""
_RESIZE = 0x20
"""How a change of the table's size begins, in its first three bits."""
_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_METADATA_KEY = re.compile(r"[0-9a-z_.-]+")
_METADATA_VALUE = re.compile(r"[ -~]*")
_BAD_IN_VALUES = re.compile(rb"[\x00\r\n]")
_REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
_OF_ONE_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_NOT_METADATA = frozenset(
    {b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"}
)
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_GRPC = re.compile(rb"application/grpc([+;].*)?", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The contents of a call's headers.

    `http_status` is not 200 where they are no call of gRPC, and `timeout` is in
    seconds, None where the call has none.
    """

    path: str
    metadata: Metadata
    timeout: float | None
    encoding: str
    http_status: int


class HeadReader:
    """Reads the header blocks of one connection, in their order.

    The calls of a client have similar headers, and after the first few their blocks do
    not change the connection's table. While it does not change, equal blocks hold equal
    headers. Such a block is decoded once.
    """

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MAX_LIST_BYTES)
        self._known: dict[bytes, Head] = {}
        self._known_bytes = 0

    def read(self, block: bytes) -> Head:
        """Read the headers of a call.

        Raises ProtocolError, after which the connection's table is lost, and
        StreamError where these headers alone are bad.
        """
        head = self._known.get(block)
        if head is None:
            lasting = not _changes_table(block)
            fields = self._decode(block)
            size = len(block) + sum(len(name) + len(value) for name, value in fields)
            if (
                not lasting
                or len(self._known) >= _KEPT_BLOCKS
                or self._known_bytes + size > _KEPT_BYTES
            ):
                self._forget()
            head = _to_head(fields)
            if lasting:
                self._known[block] = head
                self._known_bytes += size
        return head

    def skip(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Read a block that begins no call; raises ProtocolError."""
        self._forget()
        return self._decode(block)

    def _forget(self) -> None:
        self._known.clear()
        self._known_bytes = 0

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        _require_few_resizes(block)
        try:
            fields = [
                (bytes(name), bytes(value)) for name, value in self._decoder.decode(block, True)
            ]
        except OversizedHeaderListError as error:
            raise ProtocolError(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"the headers are too large; the limit is {MAX_LIST_BYTES} bytes",
            ) from error
        except HPACKError as error:
            raise ProtocolError(
                ErrorCode.COMPRESSION_ERROR, "the header block is no HPACK"
            ) from error
        if len(fields) > MAX_FIELDS:
            raise ProtocolError(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"there are {len(fields)} headers; the limit is {MAX_FIELDS}",
            )
        return fields


def _require_few_resizes(block: bytes) -> None:
    """Raise ProtocolError for a block that changes the size of the table again and again."""
    position = resizes = 0
    try:
        while block[position] & 0xE0 == _RESIZE:
            position, _ = _integer(block, position, 5)
            resizes += 1
            if resizes > _MOST_RESIZES:
                raise ProtocolError(
                    ErrorCode.COMPRESSION_ERROR,
                    f"a block changes the table's size more than {_MOST_RESIZES} times",
                )
    except IndexError:
        return  # the decoder finds the error


def _changes_table(block: bytes) -> bool:
    """Return whether a header block may change the connection's table (RFC 7541, section 6)."""
    position = 0
    try:
        while position < len(block):
            first = block[position]
            if first & 0x80:  # an index
                position, _ = _integer(block, position, 7)
            elif first & 0x60:  # a literal to be added, or another size of the table
                return True
            else:
                position, index = _integer(block, position, 4)
                for _ in range(1 if index else 2):
                    start, length = _integer(block, position, 7)
                    position = start + length
    except IndexError:
        return True  # the decoder finds the error
    return False


def _integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    """Read an integer with a prefix of so many bits; return where it ends, and it."""
    most = (1 << bits) - 1
    value = block[position] & most
    position += 1
    if value == most:
        for shift in range(0, 28, 7):
            value += (block[position] & 0x7F) << shift
            position += 1
            if not block[position - 1] & 0x80:
                break
        else:
            raise IndexError("no header needs an integer of so many bytes")
    return position, value


def _to_head(fields: Iterable[tuple[bytes, bytes]]) -> Head:
    pseudo: dict[bytes, bytes] = {}
    known: dict[bytes, bytes] = {}
    metadata: list[tuple[str, str | bytes]] = []
    joined = 0
    for name, value in fields:
        _require_field(name, value)
        if name.startswith(b":"):
            if name not in _REQUEST_PSEUDO or name in pseudo or known or metadata:
                raise _malformed("a pseudo-header is unknown, repeated or late")
            pseudo[name] = value
        elif name in _OF_ONE_HOP or (name == b"te" and value.lower() != b"trailers"):
            raise _malformed("a header belongs to another version of HTTP")
        elif name in _NOT_METADATA:
            known[name] = value
        else:
            if name.endswith(b"-bin"):
                # One byte may be a header of the table, and each of its values is decoded.
                joined += value.count(b",")
                if joined > _MOST_JOINED:
                    raise _malformed("binary metadata has too many values")
            metadata.extend(_to_metadata(name, value))
    if not {b":method", b":scheme", b":path"} <= pseudo.keys() or not pseudo[b":path"]:
        raise _malformed("a pseudo-header is missing")
    return Head(
        path=pseudo[b":path"].decode("latin-1"),
        metadata=tuple(metadata),
        timeout=_to_seconds(known.get(b"grpc-timeout")),
        encoding=known.get(b"grpc-encoding", b"identity").decode("latin-1"),
        http_status=_http_status(pseudo[b":method"], known.get(b"content-type", b"")),
    )


def check_trailers(fields: Iterable[tuple[bytes, bytes]]) -> None:
    """Check the trailers of a client's stream, which gRPC ignores; raises StreamError."""
    for name, value in fields:
        _require_field(name, value)
        if name.startswith(b":"):
            raise _malformed("a pseudo-header is late")


def _require_field(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name) or _BAD_IN_VALUES.search(value):
        raise _malformed("a header's name or value has bytes that it must not have")


def _http_status(method: bytes, content_type: bytes) -> int:
    if method != b"POST":
        return 405
    return 200 if _GRPC.fullmatch(content_type.lower()) else 415


def _to_metadata(name: bytes, value: bytes) -> Iterable[tuple[str, str | bytes]]:
    key = name.decode("ascii")
    if not key.endswith("-bin"):
        yield key, value.decode("latin-1")
        return
    # Several values of one key may have been joined, and padding may be left out.
    for part in value.split(b","):
        bare = part.strip().rstrip(b"=")
        try:
            yield key, base64.b64decode(bare + b"=" * (-len(bare) % 4), validate=True)
        except binascii.Error as error:
            raise _malformed("binary metadata is no base64") from error


def _to_seconds(timeout: bytes | None) -> float | None:
    if timeout is None:
        return None
    match = _TIMEOUT.fullmatch(timeout)
    if match is None:
        raise _malformed("grpc-timeout is no number with a unit")
    return int(match[1]) * _UNITS[match[2]]


def _malformed(message: str) -> StreamError:
    return StreamError(ErrorCode.PROTOCOL_ERROR, message)


def write(fields: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Return a header block that leaves the peer's table as it is; `-bin` values are base64."""
    return b"".join(_literal(name, value) for name, value in fields)


def write_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Return the header block of what a handler sends.

    Raises ValueError for what gRPC does not allow as a key or a value.
    """
    fields = tuple(metadata)
    for key, value in fields:
        if not (isinstance(key, str) and _METADATA_KEY.fullmatch(key)):
            raise ValueError(f"{key!r} is no key of metadata")
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if not isinstance(text, str) or not (
            key.endswith("-bin") or _METADATA_VALUE.fullmatch(text)
        ):
            raise ValueError(f"the value of the metadata {key!r} is no printable ASCII")
    return write(fields)


def _literal(name: str, value: str | bytes) -> bytes:
    if name.endswith("-bin"):
        raw = value if isinstance(value, bytes) else value.encode()
        text = base64.b64encode(raw).rstrip(b"=")
    else:
        text = value if isinstance(value, bytes) else value.encode("ascii")
    return b"".join((b"\x00", _sized(name.encode("ascii")), _sized(text)))


def _sized(text: bytes) -> bytes:
    """Return a string after its length, an integer with a prefix of seven bits."""
    size = len(text)
    if size < 0x7F:
        return bytes((size,)) + text
    size -= 0x7F
    length = bytearray((0x7F,))
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes(length) + text
