"""Masked copies of a picture: maps by occlusion, and what any map is worth."""

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import CamOutput, InputSpec, Scores
from foveate_runtime.bundle.scores import score
from foveate_runtime.imaging.masking import GRID, hidden_by_cell, hidden_by_map
from foveate_serve.classification import MapCheck

OCCLUSION = CamOutput(method="occlusion", layer="image", height=GRID, width=GRID)
"""The map that every classifier has: it needs no output of the graph."""

LEAST_COPIES, MOST_COPIES = 8, 32
"""The range of the number of copies for the check of a map: fewer give a poor estimate."""


def make_copies(
    picture: NDArray[np.uint8], spec: InputSpec, values: NDArray[np.float32] | None, copies: int
) -> NDArray[np.uint8]:
    """Return copies of a picture, uint8 [height, width, channels], with parts in the mean colour.

    They try the map `values`, [h, w]; where it is None, they are those of the occlusion.
    """
    empty = np.broadcast_to(np.array(spec.border, np.uint8), picture.shape)
    if values is None:
        return hidden_by_cell(picture, empty)
    return hidden_by_map(picture, empty, values, copies // 2)


def occlude(
    logits: NDArray[np.float32], masked: NDArray[np.float32], class_ids: list[int]
) -> NDArray[np.float32]:
    """Return how far the logits of classes fall without each cell, float32 [K, GRID, GRID].

    `logits` are float32 [classes], `masked` those of the copies, [GRID * GRID, classes].
    """
    drops = logits[class_ids] - masked[:, class_ids]
    return np.ascontiguousarray(drops.T.reshape(len(class_ids), GRID, GRID))


def judge(
    logits: NDArray[np.float32], masked: NDArray[np.float32], class_id: int, scores: Scores
) -> MapCheck:
    """Return what the map of a class is worth, by the logits [copies, classes] of the copies."""
    whole, *parts = score(np.vstack([logits[np.newaxis], masked]), scores)[:, class_id]
    pairs = len(parts) // 2
    return MapCheck(
        drop=float(whole - np.mean(parts[:pairs])),
        random_drop=float(whole - np.mean(parts[pairs:])),
        copies=len(parts),
    )
