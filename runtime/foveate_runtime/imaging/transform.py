"""A decoded picture, fitted to the classifier's input."""

from contextlib import ExitStack
from dataclasses import dataclass, replace

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
    """The part of a picture that the classifier saw, in pixels of the upright picture.

    It goes beyond the picture where the input has a border.
    """

    source_width: int
    source_height: int
    left: float
    top: float
    width: float
    height: float
    warnings: tuple[str, ...] = ()
    """What to know of how it was read, for a person."""


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Where the input lies on a picture, along one axis.

    `start` and `length` are the input's in the resized picture, of which the input's
    pixels from `first` to `last` are taken; `scale` is the picture's pixels to one of those.
    """

    start: int
    length: int
    first: int
    last: int
    scale: float

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last place of the picture that is taken, in its pixels."""
        return (self.start + self.first) * self.scale, (self.start + self.last) * self.scale


def prepare(data: bytes, spec: InputSpec, limits: ImageLimits) -> tuple[NDArray[np.uint8], View]:
    """Turn an encoded picture into the classifier's input.

    Returns uint8 [height, width, channels] and the part of the picture seen. The
    same as the evaluation transforms of torchvision (`crop`) and timm (`squash`,
    `pad`), with only the part that is seen resized; pixels differ by what is rounded
    and clipped between rows and columns. Raises ImageError.
    """
    small = spec.height * spec.width <= limits.max_pixels
    if small and len(data) <= min(_SMALL_BYTES, limits.max_bytes):
        pixels = decode_plain(data, height=spec.height, width=spec.width, channels=spec.channels)
        if pixels is not None:
            return pixels, whole_view(spec)
    longest = max(spec.resize, *((spec.height, spec.width) if spec.fit == "crop" else spec.frame))
    with ExitStack() as held:
        decoded = decode(
            data,
            channels=spec.channels,
            limits=limits,
            shorter_side=longest * DRAFT_MARGIN,
            held=held,
        )
        fitted = fit(decoded, spec)
        # Its memory is free before the next picture has the room.
        del decoded
        return fitted


def fit(decoded: Decoded, spec: InputSpec) -> tuple[NDArray[np.uint8], View]:
    """Resize a picture and take its centre, in one step over the part that is seen.

    Returns uint8 [height, width, channels] and the part of the picture seen.
    """
    orientation = decoded.orientation
    width, height = decoded.width, decoded.height
    if orientation.swap:
        width, height = height, width
    if (width, height) == (spec.width, spec.height):
        pixels = _upright(_with_channels(np.asarray(decoded.image), spec.channels), orientation)
        view = replace(whole_view(spec), warnings=decoded.warnings)
        return pixels.reshape(spec.height, spec.width, spec.channels), view
    resized_width, resized_height = _resized(width, height, spec)
    across = _span(width, resized_width, spec.width)
    down = _span(height, resized_height, spec.height)
    size = (across.last - across.first, down.last - down.first)
    seen = resample(
        decoded.image,
        size[::-1] if orientation.swap else size,
        spec.interpolation,
        _stored_box(across.ends, down.ends, decoded),
    )
    pixels = _upright(_with_channels(seen, spec.channels), orientation).reshape(
        *size[::-1], spec.channels
    )
    if size != (spec.width, spec.height):
        inside = pixels
        pixels = np.empty((spec.height, spec.width, spec.channels), np.uint8)
        pixels[:] = spec.border
        pixels[down.first : down.last, across.first : across.last] = inside
    return pixels, View(
        source_width=width,
        source_height=height,
        left=across.start * across.scale,
        top=down.start * down.scale,
        width=across.length * across.scale,
        height=down.length * down.scale,
        warnings=decoded.warnings,
    )


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


def _resized(width: int, height: int, spec: InputSpec) -> tuple[int, int]:
    """Return the width and the height of the picture that the input is the centre of."""
    frame_height, frame_width = spec.frame
    if spec.fit == "squash":
        return frame_width, frame_height
    if spec.fit == "pad":
        return _scaled(width, height, max(width / frame_width, height / frame_height))
    # torchvision truncates the longer side to whole pixels.
    if width <= height:
        resized = spec.resize, int(spec.resize * height / width)
    else:
        resized = int(spec.resize * width / height), spec.resize
    if resized[0] < spec.width or resized[1] < spec.height:
        return _scaled(width, height, min(width / spec.width, height / spec.height))
    return resized


def _scaled(width: int, height: int, ratio: float) -> tuple[int, int]:
    """Divide both sides, and round to whole pixels as timm's `ResizeKeepRatio` does."""
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _span(source: int, resized: int, wanted: int) -> _Span:
    spare = resized - wanted
    # torchvision rounds the corner of a crop, and puts the odd pixel of a border behind.
    start = round(spare / 2.0) if spare >= 0 else -(-spare // 2)
    first = max(0, -start)
    return _Span(
        start=start,
        length=wanted,
        first=first,
        last=first + min(resized, wanted),
        scale=source / resized,
    )


def _with_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Repeat the grey of a large picture, which its decoder has left so."""
    if pixels.ndim > 2 or channels == 1:
        return pixels
    return np.repeat(pixels[..., np.newaxis], channels, axis=2)


def _upright(stored: NDArray[np.uint8], orientation: Orientation) -> NDArray[np.uint8]:
    if orientation.transpose is None:
        return stored
    return np.asarray(Image.fromarray(stored).transpose(orientation.transpose))


def _stored_box(
    across: tuple[float, float], down: tuple[float, float], decoded: Decoded
) -> tuple[float, float, float, float]:
    """Return a part of the upright picture, given along its axes, in `decoded.image`."""
    orientation = decoded.orientation
    (left, right), (top, bottom) = (down, across) if orientation.swap else (across, down)
    if orientation.mirror_x:
        left, right = decoded.width - right, decoded.width - left
    if orientation.mirror_y:
        top, bottom = decoded.height - bottom, decoded.height - top
    horizontal = decoded.extent[0] / decoded.width
    vertical = decoded.extent[1] / decoded.height
    # Rounding may leave the picture by a fraction that Pillow would refuse.
    return (
        max(0.0, left * horizontal),
        max(0.0, top * vertical),
        min(float(decoded.size[0]), right * horizontal),
        min(float(decoded.size[1]), bottom * vertical),
    )
