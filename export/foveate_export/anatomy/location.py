"""Proves that the rows and columns of a map are those of the picture.

One corner of a picture is painted over, and the network runs again. Read in its
own layout, a map changes most in that corner. Read in another, where it changes
has little to do with the corner. That holds for any network that keeps things in
their place, whatever it computes.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from foveate_export.anatomy.layout import NCHW, Layout

Array = NDArray[Any]
Key = TypeVar("Key", bound=Hashable)

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Top left, top right, bottom left, bottom right: whether at the bottom, whether at the right."""

MARGIN = 1.25
"""How many times as much as any other corner the painted one has to change. Of
60 networks with random weights no activation read in a wrong layout reached 1.02."""

CLEARLY = 3.0
"""How many times as much another corner has to change to show that a map is none."""

FEW = 3
"""In so few rows and columns a convolution's every cell sees nearly all others."""

FAINT = 1e-5
"""Of the largest value: a change that may be float32's rounding, as behind ten sigmoids."""

NOT_LOCATED = "no rows and columns that follow the picture's"
"""Why an activation is no map."""

_SEED = 0
_LEAST = 1e-9
"""Of the largest change: what counts for a change of nothing."""


def painted(pictures: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield copies of normalised `pictures`, [N, C, H, W], each with another corner painted over.

    The paint is a colour and noise, for what looks at areas and for what looks at
    edges. It covers a quarter of the height and of the width.
    """
    generator = np.random.default_rng(_SEED)
    height, width = pictures.shape[2:]
    rows, columns = max(height // 4, 1), max(width // 4, 1)
    for bottom, right in CORNERS:
        colour = generator.choice([-1.5, 1.5], (*pictures.shape[:2], 1, 1))
        noise = generator.standard_normal((*pictures.shape[:2], rows, columns))
        top, left = bottom * (height - rows), right * (width - columns)
        changed = pictures.copy()
        changed[:, :, top : top + rows, left : left + columns] = colour + noise
        yield changed


def locate(
    before: Mapping[Key, Array],
    after: Iterable[Mapping[Key, Array]],
    layouts: Mapping[Key, Sequence[Layout]],
    convolved: Collection[Key] = (),
) -> dict[Key, Layout]:
    """Return the layout of each activation whose rows and columns are those of the picture.

    Args:
        before: the activations on some pictures, the axis N first.
        after: the same on each of the pictures that `painted` makes of them.
        layouts: what to choose from, for each activation.
        convolved: the activations whose axes 2 and 3 are rows and columns because
            of what is done with them. They are maps all the same where no paint can
            tell, because each of a few cells sees the whole picture, or because the
            change is faint; unless another of them clearly changes in another place.

    Returns:
        The layouts found, for the activations that have one.
    """
    changes: dict[tuple[Key, Layout], list[Array]] = {}
    for values in after:
        for key, choice in layouts.items():
            change = np.abs(_difference(before[key], values.get(key)))
            for layout in choice:
                cells = layout.to_nchw(change).sum((0, 1))
                changes.setdefault((key, layout), []).append(cells)
    scores = {pair: score(cells) for pair, cells in changes.items()}
    found = {}
    for key, choice in layouts.items():
        best = max(choice, key=lambda layout: scores[key, layout])
        if scores[key, best] >= MARGIN:
            found[key] = best
    known = {key for key in convolved if NCHW in layouts[key]}
    faint = {
        key
        for key in known
        if max(map(np.max, changes[key, NCHW])) <= FAINT * np.abs(before[key]).max()
    }
    if all(scores[key, NCHW] > 1 / CLEARLY for key in known - faint):
        few = {key for key in known if max(before[key].shape[2:]) <= FEW}
        found |= dict.fromkeys((few | faint) - found.keys(), NCHW)
    return found


def score(changes: Sequence[Array]) -> float:
    """Return how many times as much as any other corner of a map the painted one changes.

    Args:
        changes: by the corner painted, how much each cell changes, [h, w].

    Returns:
        The least of two ratios, over all corners: of the change in the painted
        corner to that in any other, and of its share in all changes to its share
        when another corner is painted. 1 where nothing changes.
    """
    rows, columns = (_halves(cells) for cells in changes[0].shape)
    # By the corner painted, then by the part of the map; a single row has two parts.
    parts = np.array([[each[r, c].mean() for r in rows for c in columns] for each in changes])
    if not np.isfinite(parts).all():
        return 0.0
    parts += _LEAST * (parts.max() or 1)
    shares = parts / parts.sum(1, keepdims=True)
    own = [bottom * len(columns) * (len(rows) - 1) + right for bottom, right in CORNERS]
    ratios = []
    for corner, place in enumerate(own):
        ratios += [parts[corner, place] / parts[corner, other] for other in own if other != place]
        ratios += [
            shares[corner, place] / shares[other, place]
            for other in range(len(CORNERS))
            if own[other] != place
        ]
    return float(min(ratios))


def _halves(cells: int) -> list[slice]:
    """Return both halves of an axis, without the cell in its middle; one cell is no half."""
    half = cells // 2
    return [slice(0, half), slice(cells - half, None)] if half else [slice(None)]


def _difference(before: Array, after: Array | None) -> Array:
    """Return the difference, and none where the activation is missing or of another size."""
    if after is None or after.shape != before.shape:
        return np.zeros_like(before)
    return np.asarray(after - before)
