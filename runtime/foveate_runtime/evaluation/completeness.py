"""Whether a map adds up to the logit that it explains, measured through the graph itself.

A map is complete where its mean, or its sum, and a number that no picture changes give
the logit of every class: z[c] = mean(map[c]) + constant[c]. The constant is the bias of
the last layer, and what normalisation before it adds.

Beside it, whether Grad-CAM is the positive part of HiResCAM, so that the map of a difference of
two logits can be had of it too.
"""

from collections.abc import Mapping
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
    Completeness,
    Manifest,
)

IMAGES = 4
"""How many pictures are enough: two would always agree with the mean of a class in common."""
_LEAST = 3
_CLASSES = 64
"""Whose maps are computed at a time."""
_EXACT = "fp32"
_CUT, _UNCUT = "gradcam", "hirescam"
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
        found = _surviving(runner, manifest, images)
    changes: dict[str, dict[str, object]] = {cam.method: {} for cam in manifest.cams}
    for claim in found:
        changes[claim.method] |= claim.change()
    cams = tuple(cam.model_copy(update=changes[cam.method]) for cam in manifest.cams)
    return manifest.model_copy(update={"cams": cams})


def _surviving(
    runner: Runner, manifest: Manifest, images: NDArray[np.uint8]
) -> list["_Complete | _Positive"]:
    """Return the claims on maps that hold for every class and picture."""
    linear = [cam.method for cam in manifest.cams if cam.linear]
    claims: list[_Complete | _Positive] = [
        _Complete(method, by) for method in linear for by in ("mean", "sum")
    ]
    methods = {cam.method for cam in manifest.cams}
    if {_CUT, _UNCUT} <= methods:
        claims.append(_Positive())
    for first in range(0, manifest.classes, _CLASSES):
        chunk = np.arange(first, min(first + _CLASSES, manifest.classes))
        inputs: dict[str, NDArray[Any]] = {
            IMAGE_INPUT: images,
            CLASS_IDS_INPUT: np.tile(chunk, (len(images), 1)),
        }
        wanted = sorted({CAM_PREFIX + method for claim in claims for method in claim.needs})
        outputs = runner.run(inputs, [LOGITS_OUTPUT, *wanted])
        logits = outputs[LOGITS_OUTPUT].astype(np.float64)
        maps = {name.removeprefix(CAM_PREFIX): outputs[name] for name in wanted}
        claims = [claim for claim in claims if claim.accepts(maps, logits)]
        if not claims:
            break
    return claims


class _Complete:
    """The claim that a method's maps add up to the logit, by their mean or their sum."""

    def __init__(self, method: str, by: str) -> None:
        self.method = method
        self.needs = (method,)
        self._by = by
        self._constants: list[float] = []

    def accepts(self, maps: Mapping[str, NDArray[Any]], logits: NDArray[np.float64]) -> bool:
        """Take the maps of the next classes, [N, K, h, w] by method; return whether it holds."""
        values = maps[self.method].astype(np.float64)
        first = len(self._constants)
        parts = values.mean(axis=(2, 3)) if self._by == "mean" else values.sum(axis=(2, 3))
        rest = logits[:, first : first + values.shape[1]] - parts
        constants = rest.mean(axis=0)
        self._constants += constants.tolist()
        spread = float(np.abs(logits - logits.mean(axis=0)).max())
        return spread > 0 and bool(np.abs(rest - constants).max() <= _TOLERANCE * spread)

    def change(self) -> dict[str, object]:
        """Return the method's entries of the manifest."""
        found = {"by": self._by, "constants": self._constants}
        return {"completeness": Completeness.model_validate(found)}


class _Positive:
    """The claim that Grad-CAM is the positive part of HiResCAM.

    It is where the gradient is the same at every cell, as behind average pooling.
    """

    method = _CUT
    needs = (_CUT, _UNCUT)

    def accepts(self, maps: Mapping[str, NDArray[Any]], _: NDArray[np.float64]) -> bool:
        """Compare the maps of the next classes, [N, K, h, w]."""
        uncut = maps[_UNCUT]
        apart = np.abs(np.maximum(uncut, 0) - maps[_CUT]).max()
        return bool(apart <= _TOLERANCE * np.abs(uncut).max())

    def change(self) -> dict[str, object]:
        """Return the method's entries of the manifest."""
        return {"positive_of": _UNCUT}
