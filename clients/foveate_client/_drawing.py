"""Colours, maps laid over pictures, and sheets of channels."""

import math
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""left, top, width, height in pixels."""

# Turbo (A. Mikhailov, 2019) as R. Du's polynomial of degree 5, for red, green
# and blue, lowest power first.
_TURBO = np.array(
    [
        [0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943],
        [0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604],
        [0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973],
    ],
    dtype=np.float32,
)
# Viridis (S. van der Walt, N. Smith, 2015) at nine even steps: its lightness
# rises evenly, which suits the fine structure of a channel.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
        (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37),
    ],
    dtype=np.float32,
)  # fmt: skip

_STRIP = 256
"""Rows that are drawn at once."""

INK = (32, 33, 36)
FAINT = (128, 134, 139)
PAPER = (255, 255, 255)


def turbo(values: Floats) -> Bytes:
    """Return the colours of `values` from 0 to 1: uint8 [..., 3]."""
    powers = np.clip(values, 0, 1)[..., None] ** np.arange(6, dtype=np.float32)
    return (np.clip(powers @ _TURBO.T, 0, 1) * 255 + 0.5).astype(np.uint8)


def viridis(values: Floats) -> Bytes:
    """Return the colours of `values` from 0 to 1: uint8 [..., 3]."""
    steps = np.linspace(0, 1, len(_VIRIDIS))
    channels = [np.interp(values, steps, column) for column in _VIRIDIS.T]
    return (np.stack(channels, axis=-1) + 0.5).astype(np.uint8)


def evidence(values: Floats) -> Floats:
    """Return the positive part of a map as a share of its maximum, from 0 to 1.

    A map without a positive value has no evidence anywhere.
    """
    highest = float(values.max())
    if highest <= 0:
        return np.zeros_like(values)
    return (np.clip(values, 0, None) / highest).astype(np.float32)


def resample(values: Floats, size: tuple[int, int], box: Box) -> Floats:
    """Return [height, width] values, bilinear between the cells of a map.

    `size` is the width and height of the result; `box` is where the map lies
    in it. Past the centres of its outer cells the map goes on unchanged.
    """
    width, height = size
    left, top, box_width, box_height = box
    by_rows = _bilinear(values, height, top, box_height)
    return _bilinear(by_rows.T, width, left, box_width).T


def _bilinear(values: Floats, pixels: int, start: float, length: float) -> Floats:
    """Return values [cells, N] as [pixels, N]: a mean of the two cells about each pixel."""
    cells = len(values)
    centres = np.clip((np.arange(pixels) + 0.5 - start) * cells / length - 0.5, 0, cells - 1)
    below = centres.astype(np.intp)
    share = (centres - below).astype(np.float32)[:, None]
    # No product of matrices: its threads take longer than so little work.
    above = np.minimum(below + 1, cells - 1)
    between: Floats = values[below] * (1 - share) + values[above] * share
    return between


def overlay(image: Image.Image, values: Floats, box: Box, opacity: float) -> Image.Image:
    """Lay the evidence of a map over the part `box` of an RGB `image`, and return it.

    The colour covers the picture in proportion to the evidence, at most by the
    share `opacity`: where nothing speaks for the class it stays as it is. The
    picture is drawn on in strips, so that little memory is taken beside its own.
    """
    left, top, width, height = box
    x0, y0 = max(0, math.floor(left)), max(0, math.floor(top))
    x1 = min(image.width, math.ceil(left + width))
    y1 = min(image.height, math.ceil(top + height))
    shown = evidence(values)
    for upper in range(y0, y1, _STRIP):
        strip = (x0, upper, x1, min(upper + _STRIP, y1))
        inner = (left - x0, top - upper, width, height)
        levels = resample(255 * shown, (x1 - x0, strip[3] - upper), inner)
        colours = Image.fromarray((levels + 0.5).astype(np.uint8), "P")
        colours.putpalette(_palette())
        mask = Image.fromarray((opacity * levels + 0.5).astype(np.uint8))
        image.paste(colours.convert("RGB"), strip[:2], mask)
    return image


@cache
def _palette() -> bytes:
    return turbo(np.linspace(0, 1, 256, dtype=np.float32)).tobytes()


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of every label."""
    return ImageFont.load_default(size)


def contact_sheet(values: Floats, channels: tuple[int, ...], title: str) -> Image.Image:
    """Return a grid of the channels of [C, h, w] values, each with its number.

    Each channel is coloured from its own minimum to its own maximum, so that a
    weak one can be read beside a strong one; a channel of one value alone is
    grey. The fewer there are, the larger they are shown.
    """
    count, height, width = values.shape
    longest = min(max(72, 640 / math.sqrt(count)), 256)
    scale = max(1, math.ceil(longest / max(height, width)))
    tile_width, tile_height = width * scale, height * scale
    gap, label_size, margin, title_size = 8, 12, 24, 18
    step_x, step_y = tile_width + gap, tile_height + label_size + gap + 4
    columns = max(1, min(count, round(math.sqrt(count * 1.5 * step_y / step_x))))
    rows = math.ceil(count / columns)
    columns = math.ceil(count / rows)
    heading = font(title_size)
    head = margin + title_size + 16
    sheet_width = max(columns * step_x - gap, math.ceil(heading.getlength(title))) + 2 * margin
    sheet = Image.new("RGB", (sheet_width, head + rows * step_y - gap + margin), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), title, INK, heading, anchor="lt")
    small = font(label_size)
    for position, (channel, plane) in enumerate(zip(channels, values, strict=True)):
        x = margin + position % columns * step_x
        y = head + position // columns * step_y
        tile = Image.fromarray(channel_colours(plane))
        sheet.paste(tile.resize((tile_width, tile_height), Image.Resampling.NEAREST), (x, y))
        draw.text((x, y + tile_height + 4), str(channel), FAINT, small, anchor="lt")
    return sheet


def channel_colours(plane: Floats) -> Bytes:
    """Return one channel from its own minimum to its own maximum: uint8 [height, width, 3].

    A channel of one value alone is grey.
    """
    lowest, highest = float(plane.min()), float(plane.max())
    if highest == lowest:
        return np.full((*plane.shape, 3), 224, dtype=np.uint8)
    return viridis((plane - lowest) / (highest - lowest))


def beside(
    original: Image.Image,
    explained: Image.Image,
    box: Box,
    *,
    title: str,
    subtitle: str,
    maximum: float,
) -> Image.Image:
    """Return two pictures of one size side by side under a title.

    On the left one a thin frame shows `box`, the part that the classifier saw,
    unless that is the whole picture. A scale of the colours runs from 0 to
    `maximum`; there is none where that is not above 0.
    """
    shown = _shown(original.size)
    factor = shown[0] / original.width
    margin, gap = 20, 12
    title_size, subtitle_size = 24, 15
    head = margin + title_size + 8 + subtitle_size + 14
    canvas_width = 2 * margin + gap + 2 * shown[0]
    sheet = Image.new("RGB", (canvas_width, head + shown[1] + margin), PAPER)
    draw = ImageDraw.Draw(sheet)
    room = canvas_width - 2 * margin
    if maximum > 0:
        room -= _draw_scale(sheet, canvas_width - margin, margin + title_size // 2, maximum)
    draw.text((margin, margin), _fitting(title, title_size, room), INK, font(title_size), "lt")
    draw.text(
        (margin, margin + title_size + 8),
        _fitting(subtitle, subtitle_size, room),
        FAINT,
        font(subtitle_size),
        "lt",
    )
    sheet.paste(original.resize(shown, Image.Resampling.BICUBIC), (margin, head))
    sheet.paste(explained.resize(shown, Image.Resampling.BICUBIC), (margin + shown[0] + gap, head))
    left, top, width, height = (round(value * factor) for value in box)
    if (left, top, width, height) != (0, 0, *shown):
        frame = (margin + left, head + top, margin + left + width - 1, head + top + height - 1)
        draw.rectangle(frame, outline=PAPER, width=2)
    return sheet


def _draw_scale(sheet: Image.Image, right: int, middle: int, maximum: float) -> int:
    """Draw the colours of 0 to `maximum` to the left of `right`; return the width taken."""
    draw, face, width, height, gap = ImageDraw.Draw(sheet), font(15), 160, 12, 8
    label = f"{maximum:.3g}"
    left = right - math.ceil(face.getlength(label)) - gap - width
    ramp = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    sheet.paste(Image.fromarray(turbo(ramp)), (left, middle - height // 2))
    draw.text((left - gap, middle), "0", FAINT, face, anchor="rm")
    draw.text((right, middle), label, FAINT, face, anchor="rm")
    return right - left + math.ceil(face.getlength("0")) + 3 * gap


def _shown(size: tuple[int, int]) -> tuple[int, int]:
    # A digit of 28 pixels needs no more than this to be seen well.
    factor = min(720 / max(size), 16)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _fitting(text: str, size: int, room: int) -> str:
    """Return `text`, shortened with an ellipsis to at most `room` pixels."""
    face = font(size)
    if face.getlength(text) <= room:
        return text
    while text and face.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
