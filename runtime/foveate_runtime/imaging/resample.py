"""A part of a picture at another size, with antialiasing.

By Pillow, or where cykooz-resizer is installed by its vectorised code, which
differs in the rounding alone and takes a fifth of the time.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    import cykooz_resizer
except ModuleNotFoundError:  # an extra
    cykooz_resizer = None

_PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Both take Keys' cubic kernel with a = -0.5 for bicubic.
_CYKOOZ = {"bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}

_SUPPORT = 3
"""The kernels' reach on either side, in pixels of the larger scale: Lanczos', the widest."""

Box = tuple[float, float, float, float]


def resample(
    image: Image.Image | NDArray[np.uint8],
    size: tuple[int, int],
    interpolation: str,
    box: Box,
) -> NDArray[np.uint8]:
    """Resize a part of a picture to `size`, (width, height).

    `image` has the mode "L", "RGB" or "RGBA", or is uint8 [h, w, 3]; `interpolation` is
    nearest, bilinear, bicubic or lanczos; `box` is the part, (left, top, right,
    bottom) in pixels and fractions of them. Returns uint8 [height, width], or
    [height, width, channels] in colour.
    """
    if not _takes(interpolation, size, box):
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        return np.asarray(picture.resize(size, _PILLOW[interpolation], box=box))
    filter_type = cykooz_resizer.FilterType[_CYKOOZ[interpolation]]
    algorithm = cykooz_resizer.ResizeAlg.convolution(filter_type)
    resizer = cykooz_resizer.Resizer()
    if isinstance(image, Image.Image):
        part = _crop_box(box, *image.size)
        options = cykooz_resizer.ResizeOptions(resize_alg=algorithm, crop_box=part)
        resized = Image.new(image.mode, size)
        resizer.resize_pil(image, resized, options)
        return np.asarray(resized)
    image, box = _around(image, box, size)
    height, width = image.shape[:2]
    options = cykooz_resizer.ResizeOptions(
        resize_alg=algorithm, crop_box=_crop_box(box, width, height)
    )
    colour = cykooz_resizer.PixelType.U8x3
    source = cykooz_resizer.ImageData(width, height, colour, image.tobytes())
    target = cykooz_resizer.ImageData(*size, colour)
    resizer.resize(source, target, options)
    return np.frombuffer(target.get_buffer(), dtype=np.uint8).reshape(*size[::-1], 3)


def _takes(interpolation: str, size: tuple[int, int], box: Box) -> bool:
    """Return whether cykooz-resizer is there and does it.

    Where a cubic kernel enlarges and the first pixel's centre falls on a source pixel's, it
    reads outside of the picture, which ends the process: it leaves out weights of zero at the
    start, so that the second pixel begins before the first one (fast_image_resize,
    src/convolution/mod.rs, `precompute_coefficients`).
    """
    left, top, right, bottom = box
    enlarges = right - left < size[0] or bottom - top < size[1]
    return (
        cykooz_resizer is not None
        and interpolation in _CYKOOZ
        and not (interpolation == "bicubic" and enlarges)
    )


def _around(
    image: NDArray[np.uint8], box: Box, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], Box]:
    """Return the pixels that the part's own are made of, and where it lies in them.

    They are copied before they are resized, and these are fewer.
    """
    left, top, right, bottom = box
    across = math.ceil(_SUPPORT * max(1.0, (right - left) / size[0]))
    down = math.ceil(_SUPPORT * max(1.0, (bottom - top) / size[1]))
    x, y = max(0, math.floor(left) - across), max(0, math.floor(top) - down)
    pixels = image[y : math.ceil(bottom) + down, x : math.ceil(right) + across]
    return pixels, (left - x, top - y, right - x, bottom - y)


def _crop_box(box: Box, width: int, height: int) -> Any:
    left, top, right, bottom = box
    return cykooz_resizer.CropBox(left, top, _span(left, right, width), _span(top, bottom, height))


def _span(start: float, end: float, limit: int) -> float:
    """Return the length from `start` to `end`, of which the sum with `start` keeps to `limit`."""
    length = end - start
    return length if start + length <= limit else math.nextafter(length, 0.0)
