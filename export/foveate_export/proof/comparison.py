"""Compares the outputs of two graphs that ought to be the same; needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from foveate_export.errors import ParityError
from foveate_export.pictures import Pictures
from foveate_runtime.backends.base import Array
from foveate_runtime.bundle.golden import FLOOR, refusals
from foveate_runtime.bundle.manifest import (
    CAM_PREFIX,
    FEATURES_PREFIX,
    LOGITS_OUTPUT,
    Parity,
    Tolerances,
)

TOLERANCES: Mapping[str, Tolerances] = MappingProxyType(
    {
        # Two engines add the same products in different orders. In float32, over
        # networks of a hundred layers, that moves a value by about 1e-6 of the
        # largest one. A wrong weight, mean or class moves it by more than 1e-2.
        # The logits gather what every layer adds and so are given the most room.
        "fp32": Tolerances(measure="largest", logits=1e-3, cams=1e-4, features=1e-4),
        # Rounding is noise, of which the largest value says little. Each operation
        # rounds to 11 bits, 3e-4 of the value; a hundred of them add up to 5e-3. Where
        # an activation is near zero, rounding also decides whether the gradient passes
        # its ReLU, which moves the maps of AlexNet by 3e-2; a wrong one moves them by 1.
        "fp16": Tolerances(measure="rms", logits=2e-2, cams=1e-1, features=2e-2),
        # 256 steps for the range of a whole tensor leave an error of a tenth of the
        # activations behind 50 layers. What is wrong has one of their own size.
        "int8": Tolerances(measure="rms", logits=0.25, cams=0.25, features=0.25),
        "int8-symmetric": Tolerances(measure="rms", logits=0.25, cams=0.25, features=0.25),
    }
)
"""What is accepted of each variant, relative to the values of the original."""

# A gradient that goes to another cell of a window, because the two were equal to
# within rounding, moves a map there by tenths of its largest value, and there
# alone. In 10,000 windows it happens once or so, which leaves the power of the
# map as it is; a wrong gradient does not.
SELECTING = Tolerances(measure="rms", logits=1e-4, cams=5e-2, features=1e-5)
"""What is accepted of fp32 where gradients pass through a maximum."""


def accepted(variant: str, *, selecting: bool) -> Tolerances:
    """Return what is accepted of a variant, whose gradients pass through a maximum or not."""
    return SELECTING if selecting and variant == "fp32" else TOLERANCES[variant]


@dataclass(frozen=True)
class Answers:
    """The outputs of a classifier, as the graph contract describes them.

    `cams` is by method, `features` by layer. `sizes` is by method, float [N, K]: the
    largest absolute value of each map before the ReLU that ends it, where one does. What
    is left of a map that is negative nearly everywhere says nothing of how far it rounds.
    """

    logits: NDArray[np.float32]
    cams: dict[str, NDArray[np.float32]]
    features: dict[str, NDArray[np.float32]]
    sizes: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def outputs(self) -> dict[str, NDArray[np.float32]]:
        """All of them, by the names of the graph's outputs."""
        return {
            LOGITS_OUTPUT: self.logits,
            **{CAM_PREFIX + method: maps for method, maps in self.cams.items()},
            **{FEATURES_PREFIX + layer: maps for layer, maps in self.features.items()},
        }

    @property
    def output_sizes(self) -> dict[str, NDArray[np.float32]]:
        """`sizes`, by the names of the graph's outputs."""
        return {CAM_PREFIX + method: size for method, size in self.sizes.items()}


class Comparison:
    """The largest differences from `original`, such as torch, seen so far."""

    def __init__(self, original: str) -> None:
        self._original = original
        self._logits_max_abs = 0.0
        self._agreed = 0
        self._logits = 0.0
        self._cams: dict[str, float] = {}
        self._features: dict[str, float] = {}
        self._squares: dict[str, NDArray[np.float64]] = {}

    def add(self, got: Mapping[str, Array], expected: Answers) -> None:
        """Take the outputs for one batch into account."""
        logits = got[LOGITS_OUTPUT]
        self._logits_max_abs = max(
            self._logits_max_abs, float(np.abs(logits - expected.logits).max())
        )
        self._agreed += int((logits.argmax(1) == expected.logits.argmax(1)).sum())
        self._logits = max(self._logits, relative_error(logits, expected.logits, (1,)))
        for method, maps in expected.cams.items():
            size = expected.sizes.get(method)
            error = relative_error(got[CAM_PREFIX + method], maps, (2, 3), size)
            self._cams[method] = max(self._cams.get(method, 0.0), error)
        for layer, maps in expected.features.items():
            error = relative_error(got[FEATURES_PREFIX + layer], maps, (1, 2, 3))
            self._features[layer] = max(self._features.get(layer, 0.0), error)
        for name, values in expected.outputs.items():
            difference = np.square(got[name] - values, dtype=np.float64).sum()
            signal = np.square(values, dtype=np.float64).sum()
            self._squares[name] = self._squares.get(name, 0) + np.array([difference, signal])

    def judge(
        self, cam_layers: Mapping[str, str], tolerances: Tolerances, pictures: Pictures
    ) -> None:
        """Raise ParityError if an output differs by more than it may.

        `cam_layers` names the layer behind each map, by method.
        """
        largest = {
            LOGITS_OUTPUT: self._logits,
            **{CAM_PREFIX + method: error for method, error in self._cams.items()},
            **{FEATURES_PREFIX + layer: error for layer, error in self._features.items()},
        }
        errors, what = largest, "its largest value"
        if tolerances.measure == "rms":
            errors, what = self._rms(), "its root mean square"
        refused = [
            f"{_named(output, cam_layers)} by {error:.2g} of {what}, "
            f"where {tolerances.limit(output):.2g} is accepted"
            for output, error in refusals(errors, tolerances).items()
        ]
        if refused:
            raise ParityError(
                f"the graph differs from {self._original} on {len(pictures)} pictures "
                f"({pictures.description}): " + "; ".join(refused)
            )

    def result(self, pictures: Pictures) -> Parity:
        """Return the figures for the manifest."""
        return Parity(
            images=len(pictures),
            data=pictures.description,
            logits_max_abs=self._logits_max_abs,
            top1_agreement=self._agreed / len(pictures),
            cams=self._cams,
            features=self._features,
            rms=self._rms(),
        )

    def _rms(self) -> dict[str, float]:
        """Return the root mean square of the difference over that of the values, by output."""
        return {
            name: float(np.sqrt(difference / (signal or 1)))
            for name, (difference, signal) in self._squares.items()
        }


def relative_error(
    got: Array, expected: Array, axes: tuple[int, ...], sizes: Array | None = None
) -> float:
    """Return the largest difference over the largest absolute value, of the worst map.

    A map extends over `axes`. `sizes` are the maps' largest absolute values where those
    of `expected` are not; see `Answers`. The result is infinite where the shapes differ or
    a value of `got` is infinite or no number.
    """
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    difference = np.abs(got - expected).max(axes)
    largest = np.abs(expected).max(axes) if sizes is None else sizes
    scale = np.maximum(largest, FLOOR * largest.max())
    return float((difference / np.where(scale > 0, scale, 1)).max())


def some_class_ids(images: int, classes: int) -> NDArray[np.int64]:
    """Ask for the best two by rank, and for two by id that differ from picture to picture."""
    ranks = np.tile([-1, -min(2, classes)], (images, 1))
    index = np.arange(images)
    ids = np.stack([index, classes - 1 - index], axis=1) % classes
    return np.concatenate([ranks, ids], axis=1).astype(np.int64)


def resolve_ranks(class_ids: Array, logits: Array) -> NDArray[np.int64]:
    """Replace ranks by classes, by the graph's own logits: torch may break a near tie otherwise."""
    ranked = np.argsort(-logits, axis=1, kind="stable")
    by_rank = np.take_along_axis(ranked, np.maximum(-1 - class_ids, 0), axis=1)
    return np.where(class_ids < 0, by_rank, class_ids)


def _named(output: str, cam_layers: Mapping[str, str]) -> str:
    layer = cam_layers.get(output.removeprefix(CAM_PREFIX)) if CAM_PREFIX in output else None
    return f"{output} of layer {layer}" if layer else output
