"""Drift: whether the answers of now are distributed as those to the calibration pictures.

What is watched of every answer: the confidence of its best class, the entropy of its
probabilities, its out-of-distribution percentile, and the size of its prediction set; and of
those with the default map of the best class, the entropy of the map's positive part, the row and
the column of its peak, and the share of the positive part on the border. The
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
"""Fewer say nothing: with ten bins chance alone gives a PSI of about 9 over their number."""
SAMPLES_A_SECOND = 20.0
"""The most answers that are looked at, so that watching costs next to nothing."""

_MAPS = "map_"
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


def measure_maps(maps: NDArray[np.float32]) -> dict[DriftFigure, Doubles]:
    """Return the figures of maps [N, h, w], float64 [N] each."""
    positive = np.maximum(maps, 0).astype(np.float64)
    total = positive.sum((1, 2), keepdims=True)
    part = positive / np.where(total > 0, total, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nan_to_num(part * np.log(part)).sum((1, 2))
    row, column = np.divmod(maps.reshape(len(maps), -1).argmax(axis=1), maps.shape[2])
    return {
        "map_entropy": entropy,
        "map_peak_row": row.astype(np.float64),
        "map_peak_column": column.astype(np.float64),
        "map_border": (part.sum((1, 2)) - part[:, 1:-1, 1:-1].sum((1, 2))),
    }


def make_reference(figures: Mapping[DriftFigure, Doubles]) -> dict[DriftFigure, Histogram]:
    """Return the histograms of the figures of the calibration pictures, float64 [N] each.

    Figures that are not all finite, as of a map that is none, are left out.
    """
    return {
        name: histogram(values) for name, values in figures.items() if np.isfinite(values).all()
    }


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
        maps = {name: each for name, each in reference.items() if name.startswith(_MAPS)}
        answers = {name: each for name, each in reference.items() if name not in maps}
        self._answers, self._maps = _Window(answers), _Window(maps)
        self._lock = threading.Lock()
        self._due = 0.0

    def observe(self, logits: Logits, cam: NDArray[np.float32] | None = None) -> None:
        """Look at the logits of an answer, [classes], unless the last look was just now.

        `cam` is the default map of its best class, [h, w], where it was asked for.
        """
        now = time.monotonic()
        if now < self._due:
            return
        with self._lock:
            self._due = now + 1 / SAMPLES_A_SECOND
            self._answers.add(measure(self._assessor, logits[np.newaxis], self._scores))
            if cam is not None:
                self._maps.add(measure_maps(cam[np.newaxis]))

    def indices(self) -> dict[str, float]:
        """Return the PSI of each figure over the last answers; nothing while they are too few."""
        with self._lock:
            seen = self._answers.copy(), self._maps.copy()
        return {name: value for window in seen for name, value in window.indices().items()}


class _Window:
    """The bins of the figures of the last answers."""

    def __init__(self, reference: Mapping[DriftFigure, Histogram]) -> None:
        self._reference = reference
        self._edges = {name: np.array(each.edges) for name, each in reference.items()}
        self._bins: deque[tuple[int, ...]] = deque(maxlen=WINDOW)

    def add(self, figures: Mapping[DriftFigure, Doubles]) -> None:
        """Take the figures of one answer, float64 [1] each."""
        found = [
            int(np.searchsorted(edges, figures[name][0])) for name, edges in self._edges.items()
        ]
        self._bins.append(tuple(found))

    def copy(self) -> "_Window":
        """Return it as it is now."""
        same = _Window(self._reference)
        same._bins.extend(self._bins)
        return same

    def indices(self) -> dict[str, float]:
        """Return the PSI of each figure; nothing while the answers are too few."""
        if len(self._bins) < LEAST:
            return {}
        seen = np.array(self._bins)
        return {
            name: float(
                stability_index(
                    np.array(each.shares), np.bincount(seen[:, at], minlength=len(each.shares))
                )
            )
            for at, (name, each) in enumerate(self._reference.items())
        }
