"""How the axes of an activation are read as a map of rows and columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt, prod
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Values = TypeVar("Values", "Tensor", NDArray[Any])

MOST_PREFIX_TOKENS = 16
"""Class, distillation and register tokens: the networks of timm have nine at most."""


@dataclass(frozen=True)
class Layout:
    """The order of an activation's axes.

    Attributes:
        kind: `nchw` is [N, C, h, w], `nhwc` is [N, h, w, C], and `tokens` is
            [N, prefix + h * w, C], one token a cell, row by row.
        grid: the rows and columns of the tokens.
        prefix: how many tokens stand before those of the cells.
    """

    kind: Literal["nchw", "nhwc", "tokens"]
    grid: tuple[int, int] = (0, 0)
    prefix: int = 0

    def to_nchw(self, values: Values) -> Values:
        """Return `values`, which have this layout, as [N, C, h, w], without the prefix tokens.

        `values` is a tensor of torch or an array of numpy.
        """
        if self.kind == "nchw":
            return values
        if self.kind == "tokens":
            pictures, _, channels = values.shape
            values = values[:, self.prefix :].reshape(pictures, *self.grid, channels)
        if isinstance(values, np.ndarray):
            return values.transpose(0, 3, 1, 2)
        return values.permute(0, 3, 1, 2)

    def __str__(self) -> str:
        """Return the kind, and for tokens the grid and the number of prefix tokens."""
        if self.kind != "tokens":
            return self.kind
        height, width = self.grid
        return f"tokens({height}, {width}, {self.prefix})"


NCHW = Layout("nchw")
NHWC = Layout("nhwc")


def candidates(
    shape: Sequence[int], picture: tuple[int, int], grids: Iterable[tuple[int, int]] = ()
) -> list[Layout]:
    """Return every layout that an activation of this shape may have.

    A map has two columns or more: one column may hold tokens, row by row.

    Args:
        shape: of the activation, with the axis N.
        picture: the rows and columns of the network's input.
        grids: the sizes of maps of the same network. Tokens are taken for the
            cells of one of these, or of one as wide for its height as the picture.
    """
    if len(shape) == 4:
        columns = {NCHW: shape[3], NHWC: shape[2]}
        return [layout for layout, count in columns.items() if count > 1]
    if len(shape) != 3:
        return []
    tokens = shape[1]
    found = []
    for prefix in range(min(MOST_PREFIX_TOKENS + 1, tokens)):
        cells = tokens - prefix
        fitting = {grid for grid in grids if prod(grid) == cells and grid[1] > 1}
        found += [
            Layout("tokens", grid, prefix) for grid in sorted(fitting | _similar(cells, picture))
        ]
    return found


def _similar(cells: int, picture: tuple[int, int]) -> set[tuple[int, int]]:
    """Return the grid of so many cells that is as wide for its height as the picture."""
    height, width = picture
    rows = isqrt(cells * height // width)
    columns = cells // rows if rows else 0
    fits = rows * columns == cells and rows * width == columns * height and columns > 1
    return {(rows, columns)} if fits else set()
