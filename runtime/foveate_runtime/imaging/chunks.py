"""The chunks of a PNG file, of which a decoder needs few (ISO/IEC 15948, section 5)."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_HEAD = struct.Struct(">I4s")
_CHECKSUM = struct.Struct(">I")
_ANCILLARY = 0x20
"""The bit of a name's first byte which says that pixels can be decoded without the chunk."""

_ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""The keywords of texts in which Pillow looks for an orientation."""


def without_metadata(data: bytes, *, everything: bool) -> bytes:
    """Return a PNG file without the chunks that its pixels do not need.

    Nothing is inflated. Transparency and what may tell the orientation stay where
    their checksum is right, unless `everything` is to go. What is malformed stays,
    for the decoder to refuse.
    """
    view, kept = memoryview(data), []
    start = position = len(SIGNATURE)
    name = b""
    while name != b"IEND" and position + _HEAD.size <= len(data):
        length, name = _HEAD.unpack_from(data, position)
        end = position + _HEAD.size + length + _CHECKSUM.size
        ancillary = name.isalpha() and name[0] & _ANCILLARY
        if ancillary and (everything or not _is_used(view[position:end], name)):
            kept.append(view[start:position])
            start = end
        position = end
    return b"".join((SIGNATURE, *kept, view[start:])) if kept else data


def _is_used(chunk: memoryview, name: bytes) -> bool:
    body = chunk[_HEAD.size : -_CHECKSUM.size]
    if name in {b"tEXt", b"zTXt", b"iTXt"}:
        used = bytes(body[: max(map(len, _ORIENTATION))]).startswith(_ORIENTATION)
    else:
        used = name in {b"tRNS", b"eXIf"}
    return used and zlib.crc32(name + body) == _CHECKSUM.unpack(chunk[-_CHECKSUM.size :])[0]
