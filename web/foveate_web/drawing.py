"""The pictures that the page shows, drawn by the client's code."""

import base64
import io

import numpy as np
from PIL import Image

from foveate_client import FeatureMap, Heatmap, ImageError, _drawing
from foveate_client._images import open_reduced

LARGEST, SMALLEST = 720, 360
"""The pixels of the longer side of what is shown."""

_FRAME, _BOX, _CENTRE = 28, 20, 14
"""MNIST's digits have 20 pixels in a frame of 28; their mass has its mean in row and column 14."""

_FAINT_INK = 64
"""The soft edge of a stroke is below this, and does not count for the digit's size."""

_LARGEST_DRAWING = 1024


def overlay(picture: bytes, heatmap: Heatmap) -> Image.Image:
    """Return the picture under the map, RGB. Raises ImageError where it cannot be read."""
    try:
        return _sized(heatmap.overlay(picture, largest=LARGEST), Image.Resampling.BICUBIC)
    except ValueError as error:
        # The server read another size of the same bytes.
        raise ImageError(str(error)) from error


def channel(features: FeatureMap) -> Image.Image:
    """Return the first channel of `features`, from its least value to its largest, RGB."""
    colours = Image.fromarray(_drawing.channel_colours(features.array[0]))
    return _sized(colours, Image.Resampling.NEAREST)


def data_uri(image: Image.Image) -> str:
    """Return `image` as the address of itself."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def preview(picture: bytes) -> Image.Image:
    """Return the picture as it is shown, RGB. Raises ImageError where it cannot be read."""
    return _sized(open_reduced(picture, LARGEST)[0], Image.Resampling.NEAREST)


def thumbnail(picture: bytes, side: int) -> Image.Image:
    """Return the picture with at most `side` pixels a side. Raises ImageError."""
    small = preview(picture)
    small.thumbnail((side, side))
    return small


def digit(strokes: bytes) -> bytes:
    """Return a drawn digit as MNIST has them: grey PNG, 28 x 28, white on black.

    The strokes, white on black, are fitted into 20 x 20 pixels, and their centre of mass is
    laid upon the frame's centre, as Y. LeCun, C. Cortes and C. Burges describe it. Raises
    ImageError where nothing is drawn, or `strokes` is no PNG of at most 1024 x 1024 pixels.
    """
    try:
        with Image.open(io.BytesIO(strokes), formats=("PNG",)) as opened:
            if max(opened.size) > _LARGEST_DRAWING:
                raise ImageError(f"a drawing has at most {_LARGEST_DRAWING} pixels a side")
            grey = opened.convert("L")
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError("the drawing is no PNG picture") from error
    box = grey.point([0] * _FAINT_INK + [255] * (256 - _FAINT_INK)).getbbox()
    if box is None:
        raise ImageError("nothing is drawn")
    drawn = grey.crop(box)
    factor = _BOX / max(drawn.size)
    size = max(1, round(drawn.width * factor)), max(1, round(drawn.height * factor))
    small = np.asarray(drawn.resize(size, Image.Resampling.BOX), dtype=np.float32)
    rows, columns = (np.arange(length) for length in small.shape)
    mass = float(small.sum())
    top = round(_CENTRE - float(small.sum(axis=1) @ rows) / mass)
    left = round(_CENTRE - float(small.sum(axis=0) @ columns) / mass)
    # A digit whose mass lies at one end would else leave the frame.
    top = min(max(top, 0), _FRAME - small.shape[0])
    left = min(max(left, 0), _FRAME - small.shape[1])
    frame = np.zeros((_FRAME, _FRAME), dtype=np.uint8)
    frame[top : top + small.shape[0], left : left + small.shape[1]] = small.round()
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def _sized(image: Image.Image, resampling: Image.Resampling) -> Image.Image:
    longest = max(image.size)
    factor = max(1.0, SMALLEST / longest) if longest < SMALLEST else min(1.0, LARGEST / longest)
    if factor == 1:
        return image
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, resampling)
