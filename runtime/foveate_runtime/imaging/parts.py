"""Bounds the parts of a file that Pillow takes one by one, in Python, before it decodes a pixel.

A part can be four bytes long, so that a file within the limit of bytes has millions; while
they are taken, no other thread of the process runs.
"""

import struct

MAX_SEGMENTS = 1024
"""Segments of a JPEG before its first scan: 64 MiB of metadata, where they are full."""

MAX_JOINED = 64
"""Segments of EXIF, and of Photoshop's resources: Pillow joins them, each with all before it."""

MAX_FILL_BYTES = 1 << 16
"""Bytes of a JPEG that fill the space before a marker."""

MAX_CHUNKS = 1 << 14
"""Chunks of a PNG: the smallest of common encoders' hold 8 KiB of pixels."""

MAX_BLOCKS = 1 << 16
"""Blocks of a GIF before its first picture, each of up to 255 bytes."""

MAX_RLE_PIXELS = 4_000_000
MAX_RLE_BYTES = 4 << 20
MAX_RLE_WIDTH = 1 << 14
"""The largest BMP with run-length encoding: Pillow decodes it in Python, run by run, and makes up
to 255 rows for four bytes that pass over them."""

MAX_PREFIXES = 2
"""Prefixes of EXIF: Pillow takes them off one by one, each time with a copy of the rest."""

MAX_WEBP_PIXELS = 1 << 24
"""Pixels of a WebP: Pillow holds four pictures of that size, and lets no other thread run."""

MAX_WEBP_CHUNKS = 1024
"""Chunks of a WebP that is mended, or described: those of an animation are its frames."""

_LENGTH = struct.Struct(">H")
_START, _SCAN, _FILL = b"\xff\xd8", 0xDA, 0xFF
_ALONE = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
"""Markers without a length (ITU-T T.81, table B.1), and the byte that makes 0xFF no marker."""
_EXIF, _PICTURES = b"Exif\0\0", b"MPF\0"
_JOINED = {0xE1: _EXIF, 0xED: b"Photoshop 3.0\0"}
_APP2 = 0xE2

_TAG_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
}
"""Bytes of a value, by its type (TIFF 6.0, section 2; 13 and 16 are of its supplements)."""
_TAG_INSIDE = 4
"""Values of so many bytes are in the tag itself."""

_BMP = struct.Struct("<IiiHHI")
_BMP_HEAD = 14
_RLE = frozenset((1, 2))

_RIFF = struct.Struct("<4sI")
_RIFF_HEAD, _RIFF_NAME = 12, 4

_GIF_HEAD = 13
_EXTENSION, _PICTURE, _TRAILER = 0x21, 0x2C, 0x3B


class TooManyPartsError(Exception):
    """A file has more parts of a kind than `limit`."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"the picture has more than {limit} {what}, which is the limit")
        self.limit = limit


def require_few(data: bytes) -> None:
    """Raise TooManyPartsError for a JPEG, a GIF or a BMP of too many parts.

    It walks no further than the limit. What is malformed is left for the decoder to refuse.
    A PNG's are counted by `chunks`.
    """
    if data.startswith(_START):
        _require_few_segments(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _require_few_blocks(data)
    elif data.startswith(b"BM"):
        _require_short_runs(data)


def require_apart(tags: bytes) -> None:
    """Raise TooManyPartsError where the tags of EXIF have more bytes than the EXIF: they overlap.

    Pillow copies the bytes of each, so that a few megabytes could become hundreds of gigabytes.
    What is malformed is left for it to refuse.
    """
    start = 0
    while tags.startswith(_EXIF, start):
        start += len(_EXIF)
        if start > MAX_PREFIXES * len(_EXIF):
            raise TooManyPartsError("prefixes of EXIF", MAX_PREFIXES)
    order = ">" if tags.startswith(b"MM", start) else "<"
    entry, left = struct.Struct(f"{order}HHI4x"), len(tags) - start
    try:
        position = start + struct.unpack_from(f"{order}I", tags, start + 4)[0]
        (count,) = struct.unpack_from(f"{order}H", tags, position)
        position += 2
        for _ in range(count):
            _, kind, values = entry.unpack_from(tags, position)
            position += entry.size
            size = values * _TAG_BYTES.get(kind, 0)
            # Where a value goes beyond the end, Pillow reads no further.
            if _TAG_INSIDE < size <= len(tags):
                left -= size
                if left < 0:
                    raise TooManyPartsError("bytes in the tags of its EXIF", len(tags) - start)
    except struct.error:
        return


def with_length(data: bytes) -> bytes | None:
    """Return a WebP up to its last whole chunk, with that length in its head.

    None where it is so already, or is no WebP, or has too many chunks.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    whole = _RIFF_HEAD
    for _ in range(MAX_WEBP_CHUNKS):
        if whole + _RIFF.size > len(data):
            break
        _, length = _RIFF.unpack_from(data, whole)
        if whole + _RIFF.size + length > len(data):
            break
        # A chunk of odd length has a byte behind it, which the last one may lack.
        whole += _RIFF.size + length + length % 2
    else:
        return None
    body = data[8:whole].ljust(whole - 8, b"\0")
    told = _RIFF.pack(b"RIFF", len(body)) + body
    return None if told == data or not body[_RIFF_NAME:] else told


def _require_few_segments(data: bytes) -> None:
    segments = fill = 0
    exif = bytearray()
    joined = dict.fromkeys(_JOINED, 0)
    position = data.find(_FILL, len(_START))
    while 0 <= position < len(data) - 1:
        marker = data[position + 1]
        if marker == _SCAN:
            break
        if marker == _FILL:
            fill, position = fill + 1, position + 1
            if fill > MAX_FILL_BYTES:
                raise TooManyPartsError("fill bytes", MAX_FILL_BYTES)
            continue
        segments += 1
        if segments > MAX_SEGMENTS:
            raise TooManyPartsError("segments before its first scan", MAX_SEGMENTS)
        end = position + 2
        if marker not in _ALONE and end + _LENGTH.size <= len(data):
            body = end + _LENGTH.size
            if marker in joined and data.startswith(_JOINED[marker], body):
                joined[marker] += 1
                if joined[marker] > MAX_JOINED:
                    raise TooManyPartsError("segments of one kind of metadata", MAX_JOINED)
            end += max(_LENGTH.size, _LENGTH.unpack_from(data, end)[0])
            if data.startswith(_EXIF, body):
                exif += data[body + (len(_EXIF) if exif else 0) : end]
            elif marker == _APP2 and data.startswith(_PICTURES, body):
                require_apart(data[body + len(_PICTURES) : end])
        position = data.find(_FILL, end)
    if exif:
        require_apart(bytes(exif))


def _require_few_blocks(data: bytes) -> None:
    if len(data) < _GIF_HEAD:
        return
    flags = data[10]
    position = _GIF_HEAD + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks = 0
    while position < len(data) and data[position] not in {_PICTURE, _TRAILER}:
        # Pillow passes over bytes that begin nothing, one by one.
        extension = data[position] == _EXTENSION
        position += 2 if extension else 1
        blocks += 1
        while extension and position < len(data) and data[position] and blocks <= MAX_BLOCKS:
            position += 1 + data[position]
            blocks += 1
        position += extension
        if blocks > MAX_BLOCKS:
            raise TooManyPartsError("blocks before its first picture", MAX_BLOCKS)


def _require_short_runs(data: bytes) -> None:
    if len(data) < _BMP_HEAD + _BMP.size:
        return
    _, width, height, _, _, compression = _BMP.unpack_from(data, _BMP_HEAD)
    if compression not in _RLE:
        return
    if abs(width * height) > MAX_RLE_PIXELS:
        raise TooManyPartsError("pixels with run-length encoding", MAX_RLE_PIXELS)
    if width > MAX_RLE_WIDTH:
        raise TooManyPartsError("pixels in a row with run-length encoding", MAX_RLE_WIDTH)
    if len(data) > MAX_RLE_BYTES:
        raise TooManyPartsError("bytes with run-length encoding", MAX_RLE_BYTES)
