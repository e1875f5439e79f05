"""Copies of a picture with parts hidden: the change of the scores shows which parts count."""

from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]

MOST_HIDDEN = 0.5
"""Of the pixels. With more of them hidden, few classes keep their score, for any map."""

GRID = 5
"""The cells of a side, each of which one copy hides: 25 copies."""


def ranking(values: Floats, height: int, width: int) -> NDArray[np.int64]:
    """Return the flat indices of the pixels, int64 [height * width], the highest value first.

    `values` is a raw map [h, w]; equal pixels keep the order of rows.
    """
    enlarged = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
    return np.argsort(-np.asarray(enlarged), axis=None, kind="stable")


def replaced(start: Picture, end: Picture, order: NDArray[np.int64], steps: int) -> Picture:
    """Return `start` with 1 / steps, 2 / steps, ... of its pixels those of `end`.

    uint8 [steps - 1, H, W, C]: without the two ends.
    """
    return np.stack([_part(start, end, order, step / steps) for step in range(1, steps)])


def _part(start: Picture, end: Picture, order: NDArray[np.int64], share: float) -> Picture:
    stage = start.reshape(-1, start.shape[-1]).copy()
    chosen = order[: round(len(order) * share)]
    stage[chosen] = end.reshape(-1, end.shape[-1])[chosen]
    return stage.reshape(start.shape)


def hidden_by_map(picture: Picture, empty: Picture, values: Floats, pairs: int) -> Picture:
    """Return copies of a picture without what a map shows, and as many without anything.

    The first `pairs` hide 1 / pairs, 2 / pairs, ... of `MOST_HIDDEN` of the pixels, those
    where the map is highest. The others hide as many by the same map, each shifted by another
    distance; what leaves at one edge enters at the opposite one. So what is hidden has the same
    size and shape, and lies anywhere. The same picture gives the same copies.

    Args:
        picture: uint8 [H, W, C].
        empty: what takes the place of hidden pixels, uint8 [H, W, C].
        values: a raw map, float32 [h, w].
        pairs: how many of each.

    Returns:
        uint8 [2 * pairs, H, W, C].
    """
    height, width = picture.shape[:2]
    random = np.random.default_rng(crc32(picture.tobytes()))
    moves = 1 + random.permutation(max(1, values.size - 1))
    order, by_map, by_chance = ranking(values, height, width), [], []
    for pair in range(pairs):
        share = MOST_HIDDEN * (pair + 1) / pairs
        move = divmod(int(moves[pair % len(moves)]), values.shape[1])
        elsewhere = ranking(np.roll(values, move, (0, 1)), height, width)
        by_map.append(_part(picture, empty, order, share))
        by_chance.append(_part(picture, empty, elsewhere, share))
    return np.stack(by_map + by_chance)


def hidden_by_cell(picture: Picture, empty: Picture) -> Picture:
    """Return a copy for each of `GRID` x `GRID` cells, row by row, without that cell.

    Occlusion (Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks",
    ECCV 2014, section 4.2), with squares that lie side by side. `picture` and `empty` are
    uint8 [H, W, C]; the copies uint8 [GRID * GRID, H, W, C].
    """
    rows, columns = (
        np.linspace(0, side, GRID + 1).round().astype(int) for side in picture.shape[:2]
    )
    copies = np.repeat(picture[np.newaxis], GRID * GRID, axis=0)
    for cell, copy in enumerate(copies):
        row, column = divmod(cell, GRID)
        part = slice(*rows[row : row + 2]), slice(*columns[column : column + 2])
        copy[part] = empty[part]
    return copies
