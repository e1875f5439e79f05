"""Plain PNG files without Pillow's way to them, which takes most of a digit's decoding.

Only the parts of a file are read here; its pixels are inflated and filtered by
Pillow's own decoder. What is not plain, or not right, is left to Pillow as a whole.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate_runtime.imaging.decode import MODES

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PART = struct.Struct(">I4s")
_NUMBER = struct.Struct(">I")
_HEADER = struct.Struct(">IIBBBBB")
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
"""By channels, in the file."""


def decode_plain(
    data: bytes, *, height: int, width: int, channels: int
) -> NDArray[np.uint8] | None:
    """Decode a PNG file of exactly this size, with 8 bits in each of 1, 3 or 4 channels.

    Returns uint8 [height, width, channels]; None where the file is another, or
    holds other chunks that change its pixels (ISO/IEC 15948, sections 5 and 11).
    """
    if channels not in MODES or not data.startswith(_SIGNATURE):
        return None
    mode = MODES[channels]
    wanted = _HEADER.pack(width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    header, compressed, name = b"", b"", b""
    position = len(_SIGNATURE)
    try:
        while name != b"IEND":
            length, name = _PART.unpack_from(data, position)
            end = position + _PART.size + length
            part = data[position + _PART.size : end]
            (checksum,) = _NUMBER.unpack_from(data, end)
            if zlib.crc32(data[position + _NUMBER.size : end]) != checksum:
                return None
            position = end + _NUMBER.size
            if name == b"IDAT":
                compressed += part
            elif name == b"IHDR":
                header += part
            elif name != b"IEND":
                return None
        if header != wanted:
            return None
        image = Image.frombytes(mode, (width, height), compressed, "zip", mode, 0)
    except (struct.error, ValueError, OSError):
        return None
    return np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(height, width, channels)
