"""JPEG files by libjpeg-turbo's own interface, where simplejpeg is installed.

Pillow uses the same library and decodes to the same pixels, row by row and with a
fourth byte a pixel, which takes half as long again.
"""

from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import simplejpeg
except ModuleNotFoundError:  # an extra
    simplejpeg = None

_START, _END = b"\xff\xd8", b"\xff\xd9"

MAX_SCALE = 8

MAX_SCANS = 32
"""The most scans of a JPEG of the most pixels; one of fewer pixels may have more in proportion.

A scan can be 12 bytes long and takes the time of all pixels; encoders write about ten.
"""


def count_scans(data: bytes) -> int:
    """Return how many scans a JPEG holds, those of its thumbnails among them.

    Counts the marker's bytes, which the data of a scan cannot contain: 0xFF is
    followed by 0 there (ITU-T T.81, section B.1.1.5).
    """
    return data.count(b"\xff\xda")


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


def is_cut_off(data: bytes) -> bool:
    """Return whether a scan of a JPEG ends before its last pixel.

    Pillow fills the missing pixels with grey, without a warning. False where simplejpeg is missing.
    """
    fault = "" if simplejpeg is None else _fault(data)
    return "premature end" in fault.lower()


def with_end(data: bytes) -> bytes | None:
    """Return a JPEG that lacks its end marker with it, None where it lacks more or is none.

    Also None where simplejpeg is missing.
    """
    if simplejpeg is None or not data.startswith(_START) or data.endswith(_END):
        return None
    ended = data + _END
    return None if _fault(ended) else ended


def _fault(data: bytes) -> str:
    """Return libjpeg-turbo's error for a JPEG, decoded at an eighth of its size."""
    try:
        simplejpeg.decode_jpeg(data, "RGB", min_height=1, min_width=1)
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
