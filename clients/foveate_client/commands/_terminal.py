"""Shows pictures in a terminal: as pixels where it can, and else as half blocks."""

import sys
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style

Show: TypeAlias = Callable[[Image.Image], RenderableType]
"""Converts a picture to something that a console can print."""

WIDEST = 100
"""The most columns of a picture: a wider one would be higher than a screen."""

_HALF_BLOCK = "▀"
_COLOURFUL = frozenset({"256", "truecolor"})


def find_show(console: Console) -> Show | None:
    """Return how to show pictures on `console`, or None where it cannot.

    Where textual-image is installed (`foveate-client[terminal]`), a terminal that
    supports sixels or Kitty's protocol shows pixels. Any other one with 256 colours
    or more shows half blocks: two pixels a character.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    return _pixels(console) or (HalfBlocks if console.color_system in _COLOURFUL else None)


def _pixels(console: Console) -> Show | None:
    # The answer of the terminal comes by standard input.
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    try:
        from textual_image import renderable  # noqa: PLC0415 - asks the terminal when imported
    except ModuleNotFoundError:
        return None
    kind = renderable.Image
    if kind not in {renderable.SixelImage, renderable.TGPImage}:
        return None
    return lambda picture: kind(picture, width=min(console.width, WIDEST), height="auto")


class HalfBlocks:
    """A picture for a console, two pixels a character: the upper in its ink, the lower behind."""

    def __init__(self, picture: Image.Image) -> None:
        self._picture = picture

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDEST, self._picture.width)
        height = max(1, round(width * self._picture.height / self._picture.width / 2)) * 2
        small = self._picture.convert("RGB").resize((width, height), Image.Resampling.BOX)
        pixels = np.asarray(small).tolist()
        for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
            for ink, paper in zip(upper, lower, strict=True):
                style = Style(color=Color.from_rgb(*ink), bgcolor=Color.from_rgb(*paper))
                yield Segment(_HALF_BLOCK, style)
            yield Segment.line()
