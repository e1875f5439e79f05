"""Drift: whether the answers of now are distributed as those to the calibration pictures.

What is watched of every answer: the confidence of its best class, the entropy of its
probabilities, its out-of-distribution percentile, and the size of its prediction set. The
population stability index (PSI) compares the shares p of the calibration pictures and q of
the last answers in bins with the deciles of the former as edges,

    PSI = sum (q - p) ln(q / p)

of which by custom less than 0.1 is no drift, and more than 0.2 is one (Siddiqi, "Credit Risk
Scorecards", 2006, chapter 8).
"""

import threading
import time
from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import Scores
from foveate_runtime.bundle.trust import DriftFigure, Histogram
from foveate_runtime.trust import shares
from foveate_runtime.trust.answer import Assessor
from foveate_runtime.trust.shares import Doubles, Logits

WINDOW = 1000
"""The answers that are compared, the last ones."""
LEAST = 200
"""With fewer the PSI is noise: with ten bins, chance alone gives about 9 over their number."""
SAMPLES_A_SECOND = 20.0
"""The most answers that are compared, so that this costs next to nothing."""

_HALF = 0.5
"""Counted in every bin beside what is there, so that none is empty (Jeffreys' prior)."""


def measure(assessor: Assessor, logits: Logits, scores: Scores) -> dict[DriftFigure, Doubles]:
    """Return the figures of logits [N, classes], float64 [N] each."""
    confidence = assessor.confidence(logits)
    chances = shares.probabilities(logits, scores) if confidence is None else confidence
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.nan_to_num(chances * np.log(chances))
        if scores == "sigmoid":
            surprise -= np.nan_to_num((1 - chances) * np.log1p(-chances))
    found = assessor.assess(logits)
    return {
        "confidence": chances.max(axis=1),
        "entropy": surprise.sum(axis=1),
        "ood_percentile": np.array([each.ood_percentile for each in found]),
        "set_size": np.array([len(each.prediction_set) for each in found], float),
    }


def make_reference(
    assessor: Assessor, logits: Logits, scores: Scores
) -> dict[DriftFigure, Histogram]:
    """Return the histograms of the figures of the calibration pictures' logits [N, classes]."""
    return {name: histogram(values) for name, values in measure(assessor, logits, scores).items()}


def histogram(values: Doubles) -> Histogram:
    """Return how values [N] are distributed, in bins by their deciles.

    What lies below or above all of them has a bin of its own, which is empty here: of a figure
    that was always the same, as the size of the sets may be, any other value is a change.
    """
    inner = np.quantile(values, np.arange(1, 10) / 10)
    edges = np.unique([np.nextafter(values.min(), -np.inf), *inner, values.max()])
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
    return Histogram(edges=tuple(edges.tolist()), shares=tuple((counts / counts.sum()).tolist()))


def stability_index(reference: Doubles, counts: NDArray[np.int64]) -> Doubles:
    """Return the PSI, [...], of counts [..., bins] against the shares of a reference [bins]."""
    total = counts.sum(axis=-1, keepdims=True)
    whole = total + _HALF * len(reference)
    expected, actual = (reference * total + _HALF) / whole, (counts + _HALF) / whole
    found: Doubles = ((actual - expected) * np.log(actual / expected)).sum(axis=-1)
    return found


class DriftWatch:
    """Watches the answers of a variant. Used from any thread.

    Args:
        assessor: of the variant.
        reference: the histograms of `make_reference`, by figure.
        scores: what makes probabilities of the logits.
    """

    def __init__(
        self, assessor: Assessor, reference: Mapping[DriftFigure, Histogram], scores: Scores
    ) -> None:
        self._assessor = assessor
        self._scores = scores
        self._edges = {name: np.array(each.edges) for name, each in reference.items()}
        self._shares = {name: np.array(each.shares) for name, each in reference.items()}
        self._bins: deque[tuple[int, ...]] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()
        self._due = 0.0

    def observe(self, logits: Logits) -> None:
        """Look at the logits of answers, [N, classes], unless the last look was just now.

        Of more than `SAMPLES_A_SECOND` as many are looked at, spread evenly over them.
        """
        now = time.monotonic()
        if now < self._due:
            return
        with self._lock:
            count = int(min(len(logits), SAMPLES_A_SECOND))
            self._due = now + count / SAMPLES_A_SECOND
            rows = np.linspace(0, len(logits) - 1, count).astype(int)
            figures = measure(self._assessor, logits[rows], self._scores)
            bins = [
                np.searchsorted(edges, figures[name]).tolist()
                for name, edges in self._edges.items()
            ]
            self._bins.extend(zip(*bins, strict=True))

    def indices(self) -> dict[str, float]:
        """Return the PSI of each figure over the last answers; nothing while they are too few."""
        with self._lock:
            seen = np.array(self._bins)
        if len(seen) < LEAST:
            return {}
        return {
            name: float(
                stability_index(reference, np.bincount(seen[:, at], minlength=len(reference)))
            )
            for at, (name, reference) in enumerate(self._shares.items())
        }
