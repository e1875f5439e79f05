"""Class activation maps, drawn."""

import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Encoding = Literal["png", "jpeg"]

JPEG_QUALITY = 90
PNG_COMPRESSION = 1
"""Of zlib's nine levels: half the time of Pillow's own choice for a tenth more bytes."""


def _jet() -> NDArray[np.uint8]:
    # MATLAB's "jet": three trapezes of width one half, a quarter apart.
    x = np.linspace(0.0, 1.0, 256)[:, None]
    centres = np.array([0.75, 0.5, 0.25])
    colours: NDArray[np.float64] = np.clip(1.5 - 4.0 * np.abs(x - centres), 0.0, 1.0)
    return np.round(colours * 255.0).astype(np.uint8)


JET = _jet()
"""The colour map "jet": uint8 [256, 3], from blue over green to red."""


def intensity(values: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32] | None:
    """Scale a raw map to a picture of intensities from 0 to 1.

    `values` is float32 [h, w]. Its positive part is divided by its maximum and
    enlarged bilinearly to float32 [height, width]. Returns None where no value
    is positive: nothing speaks for the class, and no scale would be honest.
    """
    maximum = values.max()
    if not maximum > 0:
        return None
    positive = np.maximum(values, 0.0) / maximum
    enlarged = Image.fromarray(positive).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(enlarged, dtype=np.float32)


def colourise(
    intensities: NDArray[np.float32] | None, width: int, height: int
) -> NDArray[np.uint8]:
    """Colour intensities from 0 to 1 with `JET`: uint8 [height, width, 3], black without any."""
    if intensities is None:
        return np.zeros((height, width, 3), dtype=np.uint8)
    return JET[(np.clip(intensities, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)]


def overlay(
    image: NDArray[np.uint8], intensities: NDArray[np.float32] | None, opacity: float
) -> NDArray[np.uint8]:
    """Lay the coloured map over a picture.

    `image` is uint8 [height, width, 3], `intensities` float32 [height, width],
    `opacity` the share of the map's colour from 0 to 1. Without intensities the
    picture is returned as it is.
    """
    if intensities is None:
        return image
    height, width = image.shape[:2]
    colours = Image.fromarray(colourise(intensities, width, height))
    return np.asarray(Image.blend(Image.fromarray(image), colours, opacity))


def enlarge(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Resize a picture, uint8 [h, w, channels], to uint8 [height, width, 3]; grey becomes RGB."""
    squeezed = image[..., 0] if image.shape[2] == 1 else image
    picture = Image.fromarray(squeezed).convert("RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def encode(image: NDArray[np.uint8], encoding: Encoding) -> bytes:
    """Encode a picture, uint8 [height, width, 3]."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    if encoding == "png":
        picture.save(buffer, "PNG", compress_level=PNG_COMPRESSION)
    else:
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
