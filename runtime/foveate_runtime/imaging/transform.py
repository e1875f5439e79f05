"""A decoded picture, fitted to the classifier's input."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.imaging.decode import Decoded, ImageLimits, Orientation, decode
from foveate_runtime.imaging.png import decode_plain
from foveate_runtime.imaging.resample import resample

DRAFT_MARGIN = 2
"""A JPEG may be decoded at a reduced scale while its shorter side keeps this many resize lengths.

On photographs of six megapixels the result then differs from torchvision's by
0.4 of 255 levels on average; with a margin of 1 it would be 1.6.
"""


_SMALL_BYTES = 4 << 10
"""Of a larger file the way to the decoder is a small part."""


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of a picture that the classifier saw, in pixels of the upright picture."""

    source_width: int
    source_height: int
    left: float
    top: float
    width: float
    height: float


def prepare(data: bytes, spec: InputSpec, limits: ImageLimits) -> tuple[NDArray[np.uint8], View]:
    """Turn an encoded picture into the classifier's input.

    Returns uint8 [height, width, channels] and the part of the picture seen.
    The same as torchvision's evaluation transform, `Resize(spec.resize)` of the
    shorter side and `CenterCrop`, with only the cropped part resized; pixels
    differ by what is rounded and clipped between rows and columns. Raises
    ImageError.
    """
    if len(data) <= min(_SMALL_BYTES, limits.max_bytes) and _takes_whole(spec, limits):
        pixels = decode_plain(data, height=spec.height, width=spec.width, channels=spec.channels)
        if pixels is not None:
            return pixels, whole_view(spec)
    decoded = decode(
        data,
        channels=spec.channels,
        limits=limits,
        shorter_side=spec.resize * DRAFT_MARGIN,
    )
    return fit(decoded, spec)


def fit(decoded: Decoded, spec: InputSpec) -> tuple[NDArray[np.uint8], View]:
    """Resize the shorter side and crop the centre, in one step over the cropped part alone.

    Returns uint8 [height, width, channels] and the part of the picture seen.
    """
    orientation = decoded.orientation
    width, height = decoded.width, decoded.height
    if orientation.swap:
        width, height = height, width
    size = (spec.width, spec.height)
    if size == (width, height) == decoded.size and spec.resize == min(size):
        view = whole_view(spec)
        pixels = np.asarray(decoded.image)
    else:
        view = _central_view(width, height, spec)
        pixels = resample(
            decoded.image,
            size[::-1] if orientation.swap else size,
            spec.interpolation,
            _stored_box(view, decoded, orientation),
        )
    if orientation.transpose is not None:
        pixels = np.asarray(Image.fromarray(pixels).transpose(orientation.transpose))
    return pixels.reshape(spec.height, spec.width, spec.channels), view


def _takes_whole(spec: InputSpec, limits: ImageLimits) -> bool:
    """Tell whether a picture of the classifier's size is seen as it is."""
    pixels = spec.height * spec.width
    return spec.resize == min(spec.height, spec.width) and pixels <= limits.max_pixels


def whole_view(spec: InputSpec) -> View:
    """Return what is seen of a picture of the classifier's size: all of it."""
    return View(
        source_width=spec.width,
        source_height=spec.height,
        left=0.0,
        top=0.0,
        width=spec.width,
        height=spec.height,
    )


def _central_view(width: int, height: int, spec: InputSpec) -> View:
    # torchvision truncates the longer side to whole pixels and rounds the
    # crop's corner; both are repeated here, so that the pixels agree.
    if width <= height:
        resized_width, resized_height = spec.resize, int(spec.resize * height / width)
    else:
        resized_width, resized_height = int(spec.resize * width / height), spec.resize
    across, down = width / resized_width, height / resized_height
    return View(
        source_width=width,
        source_height=height,
        left=round((resized_width - spec.width) / 2.0) * across,
        top=round((resized_height - spec.height) / 2.0) * down,
        width=spec.width * across,
        height=spec.height * down,
    )


def _stored_box(
    view: View, decoded: Decoded, orientation: Orientation
) -> tuple[float, float, float, float]:
    left, top = view.left, view.top
    right, bottom = left + view.width, top + view.height
    if orientation.swap:
        left, top, right, bottom = top, left, bottom, right
    if orientation.mirror_x:
        left, right = decoded.width - right, decoded.width - left
    if orientation.mirror_y:
        top, bottom = decoded.height - bottom, decoded.height - top
    across = decoded.extent[0] / decoded.width
    down = decoded.extent[1] / decoded.height
    # Rounding may leave the picture by a fraction that Pillow would refuse.
    return (
        max(0.0, left * across),
        max(0.0, top * down),
        min(float(decoded.size[0]), right * across),
        min(float(decoded.size[1]), bottom * down),
    )
