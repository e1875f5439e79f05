"""How far stated confidence lies from what comes true."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.trust.shares import Doubles

BINS = 15


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The pictures whose confidence lies in (low, high]: their mean confidence and accuracy."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


def reliability(confidence: Doubles, right: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """Return the bins of equal width that hold pictures, by confidence [N] from 0 to 1."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    found = []
    for place in range(bins):
        inside = places == place
        if inside.any():
            found.append(
                Bin(
                    low=float(edges[place]),
                    high=float(edges[place + 1]),
                    images=int(inside.sum()),
                    confidence=float(confidence[inside].mean()),
                    accuracy=float(right[inside].mean()),
                )
            )
    return found


def expected_calibration_error(bins: list[Bin]) -> float:
    """Return sum_b n_b / n |accuracy_b - confidence_b| (Naeini et al., AAAI 2015)."""
    images = sum(each.images for each in bins)
    return sum(each.images * abs(each.accuracy - each.confidence) for each in bins) / images
