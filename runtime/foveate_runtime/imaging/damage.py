"""What is wrong with a file that cannot be decoded, and where: said once decoding has failed.

Markers are those of ITU-T T.81, table B.1; chunks those of ISO/IEC 15948, section 11.
"""

import struct
import zlib
from types import MappingProxyType

from foveate_runtime.imaging.chunks import SIGNATURE
from foveate_runtime.imaging.parts import MAX_WEBP_CHUNKS

_OTHERS = MappingProxyType(
    {
        b"II*\0": "a TIFF",
        b"MM\0*": "a TIFF",
        b"\0\0\0\x0cjP  ": "a JPEG 2000",
        b"\xff\x4f\xff\x51": "a JPEG 2000",
        b"\0\0\0\x0cJXL ": "a JPEG XL",
        b"\xff\x0a": "a JPEG XL",
        b"\0\0\1\0": "an icon",
        b"8BPS": "a Photoshop file",
        b"%PDF": "a PDF",
        b"<svg": "an SVG",
        b"<!doctype html": "an HTML page",
        b"<html": "an HTML page",
        b"\x1f\x8b": "a gzip file",
        b"PK\3\4": "a ZIP file",
        b"version https://git-lfs": "a pointer of Git LFS, whose file was not fetched",
        b"/9j/": "a JPEG in Base64",
        b"iVBORw0KGgo": "a PNG in Base64",
        b"data:image/": "a picture in a data URL",
    }
)
"""How files begin that people send in place of pictures, in lower case where they are text."""

_HEIF = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))

_HEAD = struct.Struct(">I4s")
_LENGTH = struct.Struct(">H")
_RIFF = struct.Struct("<4sI")
_BMP = struct.Struct("<IiiHHI")
_BMP_HEAD = 14
_CRITICAL = frozenset((b"IHDR", b"PLTE", b"IDAT"))
_COLOUR_TYPE, _PALETTE = 25, 3
"""Where the header holds it, and its value where pixels are of a palette."""
_PNG = struct.Struct(">IIBB")
_PNG_BITS = MappingProxyType(
    {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
)
"""By the colour type (ISO/IEC 15948, table 11.1)."""
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_LOSSLESS = frozenset((0xC3, 0xC7, 0xCB, 0xCF))
_HIERARCHICAL = frozenset((0xC5, 0xC6, 0xCD, 0xCE))
_ALONE = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
_SCAN = 0xDA
_BITS = 8

_ELSE = "save it as a PNG or a common JPEG"


class UnsupportedError(Exception):
    """A picture may be whole, and is of a kind that is not read; the message says what to do."""


def kind_of(data: bytes) -> str:
    """Return what a file is that is no picture of the formats read; empty where that is unknown."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF:
        return "a HEIC"
    head = data[:32].lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, name in _OTHERS.items():
        if data.startswith(start) or head.lower().startswith(start):
            return name
    return ""


def describe(data: bytes) -> str:
    """Return what is damaged, and at which byte. Raises UnsupportedError."""
    try:
        if data.startswith(SIGNATURE):
            return _describe_png(data)
        if data.startswith(b"\xff\xd8"):
            return _describe_jpeg(data)
        if data.startswith(b"RIFF"):
            return _describe_webp(data)
        if data.startswith(b"BM"):
            return _describe_bmp(data)
    except (struct.error, IndexError):
        pass
    return f"its {len(data)} bytes end, or go wrong, before its last pixel"


def _describe_png(data: bytes) -> str:
    position, name = len(SIGNATURE), b""
    seen = set()
    while position + _HEAD.size <= len(data) and name != b"IEND":
        length, name = _HEAD.unpack_from(data, position)
        end = position + _HEAD.size + length
        chunk = f"the chunk {name.decode('ascii', 'backslashreplace')} of byte {position}"
        if end > len(data):
            return f"it ends at byte {len(data)}, within {chunk}"
        if name in _CRITICAL and (wrong := _wrong_chunk(name, data[position + 4 : end + 4])):
            return f"{chunk} {wrong}"
        seen.add(name)
        position = end + 4
    coloured = data[_COLOUR_TYPE : _COLOUR_TYPE + 1] == bytes((_PALETTE,))
    for needed in (b"IHDR", *((b"PLTE",) if coloured else ()), b"IDAT"):
        if needed not in seen:
            return f"it has no chunk {needed.decode()}"
    return "the pixels in its chunks IDAT cannot be inflated, or are too few"


def _wrong_chunk(name: bytes, content: bytes) -> str:
    """Return what is wrong with a chunk, given from its name to its checksum."""
    if zlib.crc32(content[:-4]) != int.from_bytes(content[-4:], "big"):
        return "has a wrong checksum"
    if name == b"IHDR":
        width, height, bits, colour = _PNG.unpack_from(content, 4)
        if not (width and height) or bits not in _PNG_BITS.get(colour, ()):
            return (
                f"says {width} x {height} pixels of {bits} bits and the colour type {colour}, "
                "which there is not"
            )
    length = len(content) - 8
    if name == b"PLTE" and (length % 3 or not 0 < length <= 3 * 256):
        return f"has {length} bytes: 3 a colour, up to 256 colours"
    return ""


def _describe_jpeg(data: bytes) -> str:
    position = data.find(0xFF, 2)
    has_frame = False
    while 0 <= position < len(data) - 1:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == _SCAN and has_frame:
            return f"the data of its scans, from byte {position} on, ends before its last pixel"
        end = position + 2
        if marker in _FRAMES:
            _require_readable(marker, data, end)
            has_frame = True
        if marker not in _ALONE:
            end += max(_LENGTH.size, _LENGTH.unpack_from(data, end)[0])
        position = data.find(0xFF, end)
    return f"it ends at byte {len(data)}, before its pixels"


def _require_readable(marker: int, data: bytes, start: int) -> None:
    _, bits, height, _, colours = struct.unpack_from(">HBHHB", data, start)
    told = ""
    if marker in _LOSSLESS:
        told = "is lossless"
    elif marker in _HIERARCHICAL:
        told = "is hierarchical"
    elif bits != _BITS:
        told = f"has {bits} bits a value"
    elif height == 0:
        told = "tells its height behind its pixels (DNL)"
    elif colours not in {1, 3, 4}:
        told = f"has {colours} colours a pixel"
    if told:
        raise UnsupportedError(f"the JPEG {told}, which is not read; {_ELSE}")


def _describe_webp(data: bytes) -> str:
    position = 12
    for _ in range(MAX_WEBP_CHUNKS):
        if position + _RIFF.size > len(data):
            break
        name, length = _RIFF.unpack_from(data, position)
        end = position + _RIFF.size + length
        if end > len(data):
            shown = name.decode("ascii", "backslashreplace").strip()
            return f"it ends at byte {len(data)}, within the chunk {shown} of byte {position}"
        position = end + (length & 1)
    return f"its chunks up to byte {len(data)} hold no picture that can be read"


def _describe_bmp(data: bytes) -> str:
    size, width, height, _, bits, compression = _BMP.unpack_from(data, _BMP_HEAD)
    start = int.from_bytes(data[10:14], "little")
    row = (width * bits + 31) // 32 * 4
    needed = start + row * abs(height)
    if compression == 0 and needed > len(data):
        return f"it ends at byte {len(data)}; its {width} x {abs(height)} pixels take {needed}"
    raise UnsupportedError(
        f"the BMP has a layout (header of {size} bytes, compression {compression}, {bits} bits "
        f"a pixel) which is not read, or is damaged; {_ELSE}"
    )
