"""Assembles the inputs of a batch from its items, and splits its outputs among them."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.backends.base import Array
from foveate_runtime.bundle.manifest import (
    CAM_PREFIX,
    CLASS_IDS_INPUT,
    FEATURES_PREFIX,
    IMAGE_INPUT,
    LOGITS_OUTPUT,
)
from foveate_serve.batching.queueing import Item

_BEST_CLASS = -1
"""Pads the class ids of a batch: valid for every model. The maps of the padding are cut off."""


def assemble(batch: list[Item], buffer: NDArray[np.uint8]) -> dict[str, Array]:
    """Return the inputs of the graph for a batch; several items are copied into `buffer`."""
    outputs = batch[0].outputs
    explained = outputs != (LOGITS_OUTPUT,) and any(n.startswith(CAM_PREFIX) for n in outputs)
    if len(batch) == 1:
        inputs: dict[str, Array] = {IMAGE_INPUT: batch[0].images}
        if explained:
            inputs[CLASS_IDS_INPUT] = batch[0].class_ids
        return inputs
    end, longest = 0, 0
    for item in batch:
        start, end = end, end + item.pictures
        buffer[start:end] = item.images
        longest = max(longest, item.class_ids.shape[1])
    inputs = {IMAGE_INPUT: buffer[:end]}
    if explained:
        class_ids = inputs[CLASS_IDS_INPUT] = np.full((end, longest), _BEST_CLASS, dtype=np.int64)
        end = 0
        for item in batch:
            start, end = end, end + item.pictures
            class_ids[start:end, : item.class_ids.shape[1]] = item.class_ids
    return inputs


def share_of(results: dict[str, Array], row: int, item: Item) -> dict[str, Array]:
    """Return an item's rows of a batch's outputs, from `row`, with the maps that it asked for."""
    rows, classes = slice(row, row + item.pictures), item.class_ids.shape[1]
    share = {}
    for name, result in results.items():
        part = result[rows]
        share[name] = part[..., :classes, :, :] if name.startswith(CAM_PREFIX) else part
    return share


def require_numbers(results: Mapping[str, Array]) -> None:
    """Check a batch's logits and maps; features are too many to look at each.

    A maximum is no number where one of its values is none. A class may be ruled out by -inf,
    but not all. Raises ArithmeticError.
    """
    for name, result in results.items():
        if not name.startswith(FEATURES_PREFIX) and not np.isfinite(result.max(axis=-1)).all():
            raise ArithmeticError(f"values of {name} are not finite numbers")
