"""Drawn strokes, which tell what direction a channel answers to."""

import math

import torch

_SIDE = 28
_HALF_LENGTH, _HALF_WIDTH = 8.5, 2.0
"""Of a bar in a picture of 28 pixels, in pixels, with the border that it shares."""


def bar(angle: float, height: int = _SIDE, width: int = _SIDE) -> torch.Tensor:
    """Return a bar in the middle of a picture, uint8 [1, height, width].

    Args:
        angle: in degrees; 0 lies, 90 stands.
        height: of the picture.
        width: of the picture. Of one of 28 x 28 pixels the bar is 16 long and 3 wide, and in
            others as much larger as the shorter side.
    """
    scale = min(height, width) / _SIDE
    rows, columns = torch.meshgrid(
        (torch.arange(height) - (height - 1) / 2) / scale,
        (torch.arange(width) - (width - 1) / 2) / scale,
        indexing="ij",
    )
    turned = math.radians(angle)
    along = columns * math.cos(turned) - rows * math.sin(turned)
    across = columns * math.sin(turned) + rows * math.cos(turned)
    # A pixel at the border is as bright as the share of it that the bar covers.
    ink = (_HALF_LENGTH - along.abs()).clamp(0, 1) * (_HALF_WIDTH - across.abs()).clamp(0, 1)
    return (255 * ink).round().to(torch.uint8)[None]
