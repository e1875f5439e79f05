"""The trust in answers: confidence, prediction set, outlier percentile, abstention."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import Scores
from foveate_runtime.bundle.trust import Policy, SetMethod, SetThresholds, Trust
from foveate_runtime.trust import outliers, sets, shares
from foveate_runtime.trust.shares import Doubles, Logits

_ROUNDING = 1e-9


class CoverageError(Exception):
    """A coverage, or a kind of set, that was not calibrated; the message lists those that were."""


def find_thresholds(trust: Trust, coverage: float | None, method: SetMethod) -> SetThresholds:
    """Return what a coverage was calibrated to; None takes the lowest.

    Raises CoverageError where it was not, or not for `method`.
    """
    for found in trust.sets:
        if coverage is None or abs(found.coverage - coverage) < _ROUNDING:
            if method == "raps" and found.raps is None:
                raise CoverageError("independent labels have no sets of raps; there is lac")
            return found
    has = ", ".join(f"{each.coverage:g}" for each in trust.sets)
    raise CoverageError(f"the coverage {coverage:g} was not calibrated; there are {has}")


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """The trust in one picture's answer.

    `confidence` is float64 [classes], None where there is no temperature.
    `prediction_set` are classes, the likeliest first. `ood_percentile` is from 0 to 100,
    the share of the calibration pictures that are less unlike them.
    """

    confidence: Doubles | None
    coverage: float
    prediction_set: tuple[int, ...]
    ood_percentile: float
    abstained: bool


class Assessor:
    """Assesses logits by what the calibration of a variant found."""

    def __init__(self, trust: Trust, policy: Policy, scores: Scores) -> None:
        self._trust = trust
        self._policy = policy
        self._scores = scores
        self._inverse = 1 / np.array(trust.temperatures)
        self._tables = {name: np.array(each) for name, each in trust.outliers.items()}

    @property
    def coverages(self) -> tuple[float, ...]:
        """The coverages that were calibrated, the lowest first."""
        return tuple(each.coverage for each in self._trust.sets)

    def confidence(self, logits: Logits) -> Doubles | None:
        """Return the calibrated probabilities of logits [N, classes]; None where there are none."""
        if not len(self._inverse):
            return None
        return shares.probabilities(logits * self._inverse, self._scores)

    def members(
        self, logits: Logits, thresholds: SetThresholds, method: SetMethod = "lac"
    ) -> NDArray[np.bool_]:
        """Return the prediction sets of logits, bool [N, classes]."""
        if method == "raps" and thresholds.raps is not None:
            return sets.raps_members(logits, thresholds.raps)
        return sets.lac_members(logits, thresholds, self._scores)

    def percentile(self, logits: Logits) -> Doubles:
        """Return the out-of-distribution percentile of logits, float64 [N]."""
        return outliers.unusual(logits, self._scores, self._trust.outlier, self._tables)

    def assess(
        self, logits: Logits, coverage: float | None = None, method: SetMethod = "lac"
    ) -> list[Assessment]:
        """Assess each picture of logits [N, classes]; raises CoverageError."""
        thresholds = find_thresholds(self._trust, coverage, method)
        confidence = self.confidence(logits)
        members = self.members(logits, thresholds, method)
        percentiles = self.percentile(logits)
        return [
            Assessment(
                confidence=None if confidence is None else confidence[row],
                coverage=thresholds.coverage,
                prediction_set=_ranked(logits[row], members[row]),
                ood_percentile=float(percentiles[row]),
                abstained=self._abstains(int(members[row].sum()), float(percentiles[row])),
            )
            for row in range(len(logits))
        ]

    def _abstains(self, size: int, percentile: float) -> bool:
        above, larger = self._policy.abstain_above, self._policy.abstain_set_larger_than
        return (above is not None and percentile > above) or (larger is not None and size > larger)


def _ranked(logits: NDArray[np.floating], members: NDArray[np.bool_]) -> tuple[int, ...]:
    classes = np.flatnonzero(members)
    order: Sequence[int] = classes[np.argsort(-logits[classes], kind="stable")].tolist()
    return tuple(order)
