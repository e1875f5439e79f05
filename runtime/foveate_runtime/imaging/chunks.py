"""The chunks of a PNG file, of which a decoder needs few (ISO/IEC 15948, section 5)."""

import struct
import zlib

from foveate_runtime.imaging.parts import MAX_CHUNKS, TooManyPartsError

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_END = b"\0\0\0\0IEND\xaeB`\x82"

_HEAD = struct.Struct(">I4s")
_CHECKSUM = struct.Struct(">I")
_ANCILLARY = 0x20
"""The bit of a name's first byte of chunks that pixels can be decoded without."""

_ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""The keywords of texts in which Pillow looks for an orientation."""
_LONGEST_KEYWORD = max(map(len, _ORIENTATION))

_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_USED = _TEXTS | {b"tRNS", b"eXIf"}


def without_metadata(data: bytes, *, everything: bool) -> bytes:
    """Return a PNG file without the chunks that its pixels do not need.

    Nothing is inflated. Transparency and chunks that may have the orientation stay where
    their checksum is right, unless `everything` is removed. What is malformed stays,
    for the decoder to refuse. Raises TooManyPartsError.
    """
    view, kept, chunks = memoryview(data), [], 0
    start = position = len(SIGNATURE)
    name = b""
    while name != b"IEND" and position + _HEAD.size <= len(data):
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise TooManyPartsError("chunks", MAX_CHUNKS)
        length, name = _HEAD.unpack_from(data, position)
        end = position + _HEAD.size + length + _CHECKSUM.size
        ancillary = name[0] & _ANCILLARY and name.isalpha()
        if ancillary and (everything or not _is_used(view, position, end, name)):
            if start < position:
                kept.append(view[start:position])
            start = end
        position = end
    return b"".join((SIGNATURE, *kept, view[start:]))


def has_end(data: bytes) -> bool:
    """Return whether a PNG file holds the chunk that ends it."""
    return data.rfind(_END) >= 0


def _is_used(view: memoryview, position: int, end: int, name: bytes) -> bool:
    if name not in _USED:
        return False
    body = view[position + _HEAD.size : end - _CHECKSUM.size]
    if name in _TEXTS and not bytes(body[:_LONGEST_KEYWORD]).startswith(_ORIENTATION):
        return False
    checksum = view[end - _CHECKSUM.size : end]
    return (
        len(checksum) == _CHECKSUM.size
        and zlib.crc32(body, zlib.crc32(name)) == _CHECKSUM.unpack(checksum)[0]
    )
