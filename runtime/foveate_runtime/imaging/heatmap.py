"""Class activation maps, drawn."""

import io
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate_runtime.imaging.jpeg import encode_rgb

Encoding = Literal["png", "jpeg"]

JPEG_QUALITY = 90
PNG_COMPRESSION = 1
"""Of zlib's nine levels: half the time of Pillow's own choice for a tenth more bytes."""


def _turbo() -> NDArray[np.uint8]:
    # Turbo (A. Mikhailov, 2019) as R. Du's polynomial of degree 5, for red,
    # green and blue, lowest power first. The client draws with the same one.
    polynomial = np.array(
        [
            [0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943],
            [0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604],
            [0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973],
        ]
    )
    powers = np.linspace(0.0, 1.0, 256)[:, None] ** np.arange(6)
    colours: NDArray[np.float64] = np.clip(powers @ polynomial.T, 0.0, 1.0)
    return np.round(colours * 255.0).astype(np.uint8)


TURBO = _turbo()
"""The colour map "turbo": uint8 [256, 3], from dark blue over green to dark red."""


def intensity(values: NDArray[np.float32], width: int, height: int) -> NDArray[np.uint8] | None:
    """Scale a raw map to a picture of intensities from 0 to 255.

    `values` is float32 [h, w]. Its positive part is divided by its maximum and
    enlarged bilinearly to uint8 [height, width]. Returns None where no value
    is positive: there is no evidence for the class, and any scale would mislead.
    """
    maximum = values.max()
    if not maximum > 0:
        return None
    # The half that rounds is added to the few cells: a pixel's weights sum up to one.
    positive = np.maximum(values, 0.0) / maximum * np.float32(255.0) + np.float32(0.5)
    rows, columns = values.shape
    enlarged: NDArray[np.float32] = _bilinear(rows, height) @ positive @ _bilinear(columns, width).T
    return enlarged.astype(np.uint8)


@lru_cache(maxsize=16)
def _bilinear(cells: int, pixels: int) -> NDArray[np.float32]:
    """Return Pillow's weights, float32 [pixels, cells], of the cells in each pixel of a line."""
    each = Image.fromarray(np.eye(cells, dtype=np.float32))
    return np.asarray(each.resize((cells, pixels), Image.Resampling.BILINEAR))


def colourise(intensities: NDArray[np.uint8] | None, width: int, height: int) -> NDArray[np.uint8]:
    """Colour intensities with `TURBO`: uint8 [height, width, 3], black without any."""
    if intensities is None:
        return np.zeros((height, width, 3), dtype=np.uint8)
    # As a palette, which is several times as quick as an array of indices.
    picture = Image.fromarray(intensities)
    picture.putpalette(TURBO.tobytes())
    return np.asarray(picture.convert("RGB"))


def overlay(
    canvas: NDArray[np.uint8], intensities: NDArray[np.uint8] | None, opacity: float
) -> NDArray[np.uint8]:
    """Lay the coloured map over a picture, in proportion to the evidence.

    `canvas` is a picture of `enlarge`, uint8 [height, width, 4], and so is the
    result; `intensities` is uint8 [height, width]. The colour's share is
    `opacity` (from 0 to 1) times the intensity over 255: without evidence for the class
    the picture stays as it is. Without intensities it is returned unchanged.
    """
    if intensities is None:
        return canvas
    # Once, what numpy would make of them for either table.
    places = intensities.astype(np.intp)
    kept, added = (
        np.take(table, places).view(np.uint16).reshape(canvas.shape) for table in _blend(opacity)
    )
    kept *= canvas
    kept += added
    kept >>= 8
    return kept.astype(np.uint8)


@lru_cache(maxsize=16)
def _blend(opacity: float) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return what to multiply a pixel with, and what to add to it, in 256ths, by intensity.

    Each uint64 [256] holds four channels of 16 bits, to look all of them up at once.
    """
    share = opacity * np.arange(256)[:, None] / 255.0
    colours = np.pad(TURBO, ((0, 0), (0, 1)))
    kept = np.repeat(np.round(256.0 * (1.0 - share)), 4, axis=1)
    added = np.round(256.0 * share * colours + 127.0)
    multiply, add = (np.ascontiguousarray(x, dtype=np.uint16) for x in (kept, added))
    return multiply.view(np.uint64)[:, 0], add.view(np.uint64)[:, 0]


def enlarge(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Resize a picture, uint8 [h, w, channels], to uint8 [height, width, 4]; grey becomes RGB.

    Of fewer than three channels the first is shown, of more the first three. The
    fourth one returned means nothing: numbers of four bytes are blended and encoded
    more quickly than those of three.
    """
    shown = image[..., 0] if image.shape[2] < 3 else image[..., :3]
    picture = Image.fromarray(np.ascontiguousarray(shown))
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture.convert("RGBX"))


def encode(image: NDArray[np.uint8], encoding: Encoding) -> bytes:
    """Encode a picture, uint8 [height, width, 3], or 4 where the fourth channel means nothing."""
    if encoding == "jpeg" and (file := encode_rgb(image, JPEG_QUALITY)) is not None:
        return file
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image[..., :3]))
    if encoding == "png":
        picture.save(buffer, "PNG", compress_level=PNG_COMPRESSION)
    else:
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
