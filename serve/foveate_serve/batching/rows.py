"""Assembles the inputs of a batch from its items, and splits its outputs among them."""

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.backends.base import Array
from foveate_runtime.bundle.manifest import CAM_PREFIX, CLASS_IDS_INPUT, IMAGE_INPUT
from foveate_serve.batching.queueing import Item

_BEST_CLASS = -1
"""Pads the class ids of a batch: valid for every model. The maps of the padding are cut off."""


def rows_of(batch: list[Item]) -> list[slice]:
    """Return the rows of a batch that hold each item's pictures."""
    ends = list(accumulate(item.pictures for item in batch))
    return [slice(end - item.pictures, end) for end, item in zip(ends, batch, strict=True)]


def assemble(batch: list[Item], buffer: NDArray[np.uint8]) -> dict[str, Array]:
    """Return the inputs of the graph for a batch; several pictures are copied into `buffer`."""
    explained = any(name.startswith(CAM_PREFIX) for name in batch[0].outputs)
    if len(batch) == 1:
        inputs: dict[str, Array] = {IMAGE_INPUT: batch[0].images}
        if explained:
            inputs[CLASS_IDS_INPUT] = batch[0].class_ids
        return inputs
    rows = rows_of(batch)
    inputs = {IMAGE_INPUT: buffer[: rows[-1].stop]}
    for place, item in zip(rows, batch, strict=True):
        buffer[place] = item.images
    if explained:
        longest = max(item.class_ids.shape[1] for item in batch)
        class_ids = np.full((rows[-1].stop, longest), _BEST_CLASS, dtype=np.int64)
        for place, item in zip(rows, batch, strict=True):
            class_ids[place, : item.class_ids.shape[1]] = item.class_ids
        inputs[CLASS_IDS_INPUT] = class_ids
    return inputs


def share_of(results: dict[str, Array], rows: slice, item: Item) -> dict[str, Array]:
    """Return an item's rows of a batch's outputs, with the maps that it asked for."""
    classes = item.class_ids.shape[1]
    return {
        name: result[rows][..., :classes, :, :] if name.startswith(CAM_PREFIX) else result[rows]
        for name, result in results.items()
    }
