"""JPEG files by libjpeg-turbo's own interface, where simplejpeg is installed.

Pillow uses the same library and decodes to the same pixels, row by row and with a
fourth byte a pixel, which takes half as long again.
"""

import re
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.imaging.parts import TooManyPartsError

try:
    import simplejpeg
except ModuleNotFoundError:  # an extra
    simplejpeg = None

_START, _END = b"\xff\xd8", b"\xff\xd9"
_CORRUPT = "Corrupt JPEG data"
"""How libjpeg-turbo's warnings begin that are about the data of a scan."""

MAX_SCALE = 8

MAX_SCANS = 32
"""The most scans of a JPEG of the most pixels; one of fewer pixels may have more in proportion.

A scan can be 12 bytes long and takes the time of all pixels; encoders write about ten.
"""


_MAX_MARKERS = 1 << 16
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""A marker as the data of a scan may be followed by (ITU-T T.81, section B.1.1.5)."""
_LENGTH_BYTES = 2
_SCAN, _LAST = 0xDA, 0xD9
_ALONE = frozenset((0x01, 0xD8))


def count_scans(data: bytes, limit: int) -> int:
    """Return how many scans a JPEG holds, as far as it matters whether there are more than `limit`.

    What follows the end marker is passed over: telephones put a film there, in which the bytes
    of a scan's marker stand by chance. Raises TooManyPartsError.
    """
    most = data.count(b"\xff\xda")
    if most <= limit:
        return most
    scans, position = 0, len(_START)
    for _ in range(_MAX_MARKERS):
        found = _MARKER.search(data, position)
        if found is None or data[found.end() - 1] == _LAST:
            return scans
        marker, position = data[found.end() - 1], found.end()
        scans += marker == _SCAN
        if marker not in _ALONE:
            length = int.from_bytes(data[position : position + _LENGTH_BYTES], "big")
            position += max(_LENGTH_BYTES, length)
    raise TooManyPartsError("segments", _MAX_MARKERS)


def power_of_two_scale(length: int, least: int) -> int:
    """Return the largest of 1, 2, 4 and 8 by which `length` can be divided to no less than `least`.

    The scales between them have no vectorised inverse transform in libjpeg-turbo.
    """
    scale = 1
    while scale < MAX_SCALE and length >= 2 * scale * least:
        scale *= 2
    return scale


COLOURS = MappingProxyType({"RGB": "RGB", "L": "GRAY"})
"""By Pillow's name of a JPEG's mode, simplejpeg's."""


def decode_jpeg(
    data: bytes, mode: str, width: int, height: int, scale: int
) -> NDArray[np.uint8] | None:
    """Decode a JPEG of `width` x `height` pixels at 1/`scale` of its size, in its own `mode`.

    Returns uint8 [ceil(height / scale), ceil(width / scale), 3], without the last axis
    for a grey one, or None where its mode is none of `COLOURS`, and where simplejpeg is
    missing or finds anything unusual in the file: the error is then Pillow's.
    """
    if simplejpeg is None or mode not in COLOURS:
        return None
    options: dict[str, Any] = {}
    if scale > 1:
        # The smallest size that is no smaller than this one is this one.
        options = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, COLOURS[mode], **options)
    except ValueError:
        return None
    return pixels if mode == "RGB" else pixels[..., 0]


def find_fault(data: bytes, mode: str) -> Literal["", "cut off", "damaged", "profile"]:
    """Return what is wrong with a JPEG, of which Pillow does not warn.

    One whose scan ends before its last pixel is cut off: Pillow fills what is missing with grey.
    Damaged is one whose data is not what an encoder wrote, but for zeros at its end; it is
    decoded as far as it goes. A profile of colours does not touch the pixels. Empty where
    simplejpeg is missing.
    """
    fault = "" if simplejpeg is None else _fault(data, mode)
    if "premature end" in fault.lower():
        return "cut off"
    if not fault.startswith(_CORRUPT):
        return ""
    if "ICC" in fault:
        return "profile"
    end = data.rfind(_END)
    return "damaged" if _fault(data[:end].rstrip(b"\0") + data[end:], mode) else ""


def with_end(data: bytes, mode: str) -> bytes | None:
    """Return a JPEG that lacks its end marker with it, None where it lacks more or is none.

    `mode` is Pillow's name of its colours.

    Also None where simplejpeg is missing.
    """
    if simplejpeg is None or not data.startswith(_START) or data.endswith(_END):
        return None
    ended = data + _END
    return None if _fault(ended, mode) else ended


def _fault(data: bytes, mode: str) -> str:
    """Return libjpeg-turbo's error for a JPEG, decoded at an eighth of its size."""
    colours = mode if mode == "CMYK" else "RGB"
    try:
        simplejpeg.decode_jpeg(data, colours, min_height=1, min_width=1)
    except ValueError as error:
        return str(error)
    return ""


def encode_rgb(pixels: NDArray[np.uint8], quality: int) -> bytes | None:
    """Encode uint8 [height, width, 3 or 4], with half the colours' resolution as Pillow does.

    A fourth channel is passed over. Returns None where simplejpeg is missing.
    """
    if simplejpeg is None:
        return None
    layout = "RGB" if pixels.shape[2] == 3 else "RGBX"
    file: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality, layout, "420", fastdct=False
    )
    return file
