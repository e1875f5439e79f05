"""Whether a map adds up to the logit that it explains, measured through the graph itself.

A map is complete where its mean, or its sum, and a number that no picture changes give
the logit of every class: z[c] = mean(map[c]) + constant[c]. The constant is the bias of
the last layer, and what normalisation before it adds.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import (
    CAM_PREFIX,
    CLASS_IDS_INPUT,
    IMAGE_INPUT,
    LOGITS_OUTPUT,
    CamOutput,
    Completeness,
    Manifest,
)

IMAGES = 4
"""How many pictures tell: two would always agree with the mean of a class that they share."""
_LEAST = 3
_CLASSES = 64
"""Whose maps are computed at a time."""
_EXACT = "fp32"
_TOLERANCE = 1e-3
"""Of the largest difference that pictures make to a logit."""


def with_completeness(bundle: Bundle, images: NDArray[np.uint8]) -> Manifest:
    """Return the manifest, the maps that are complete with their constants.

    Args:
        bundle: whose graph to run, in fp32 where it has that.
        images: different pictures, uint8 [N, H, W, C], of which `IMAGES` are taken.

    Raises:
        foveate_runtime.backends.base.BackendError: the engine fails.
    """
    manifest, images = bundle.manifest, images[:IMAGES]
    if len(images) < _LEAST or not any(cam.linear for cam in manifest.cams):
        return manifest
    names = [entry.name for entry in manifest.variants]
    with create_runner(bundle, variant=_EXACT if _EXACT in names else names[0]) as runner:
        found = _complete(runner, manifest, images)
    cams = tuple(
        cam.model_copy(update={"completeness": found.get(cam.method)}) for cam in manifest.cams
    )
    return manifest.model_copy(update={"cams": cams})


def _complete(
    runner: Runner, manifest: Manifest, images: NDArray[np.uint8]
) -> dict[str, Completeness]:
    """Return what is missing from the maps of each method that is complete."""
    candidates = [
        _Candidate(cam, by) for cam in manifest.cams if cam.linear for by in ("mean", "sum")
    ]
    for first in range(0, manifest.classes, _CLASSES):
        chunk = np.arange(first, min(first + _CLASSES, manifest.classes))
        inputs: dict[str, NDArray[Any]] = {
            IMAGE_INPUT: images,
            CLASS_IDS_INPUT: np.tile(chunk, (len(images), 1)),
        }
        outputs = runner.run(inputs, [LOGITS_OUTPUT, *{each.output for each in candidates}])
        logits = outputs[LOGITS_OUTPUT].astype(np.float64)
        candidates = [each for each in candidates if each.accepts(outputs[each.output], logits)]
        if not candidates:
            break
    return {
        each.cam.method: Completeness.model_validate({"by": each.by, "constants": each.constants})
        for each in candidates
    }


class _Candidate:
    """A method whose maps may add up to the logit, by their mean or their sum."""

    def __init__(self, cam: CamOutput, by: str) -> None:
        self.cam = cam
        self.by = by
        self.output = CAM_PREFIX + cam.method
        self.constants: list[float] = []

    def accepts(self, maps: NDArray[Any], logits: NDArray[np.float64]) -> bool:
        """Take the next classes; tell whether their maps, [N, K, h, w], are complete."""
        reduce = np.mean if self.by == "mean" else np.sum
        first = len(self.constants)
        rest = logits[:, first : first + maps.shape[1]] - reduce(
            maps.astype(np.float64), axis=(2, 3)
        )
        constants = rest.mean(axis=0)
        self.constants += constants.tolist()
        spread = float(np.abs(logits - logits.mean(axis=0)).max())
        return spread > 0 and bool(np.abs(rest - constants).max() <= _TOLERANCE * spread)
