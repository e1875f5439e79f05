"""Finds out what the logits of a variant are worth, from labelled pictures."""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import Scores
from foveate_runtime.bundle.trust import Policy, Trust
from foveate_runtime.trust import drift, outliers, sets, temperature
from foveate_runtime.trust.answer import Assessor
from foveate_runtime.trust.shares import Logits

COVERAGES = (0.9, 0.95, 0.99)
"""Those that are calibrated where none are given and the pictures suffice."""

_SEED = 0


def supported(coverages: Sequence[float], images: int, scores: Scores) -> list[float]:
    """Return the coverages that so many pictures suffice for."""
    return [each for each in coverages if sets.needed(each, scores) <= images]


def calibrate(
    logits: Logits,
    present: NDArray[np.bool_],
    *,
    scores: Scores,
    coverages: Sequence[float],
    data: str,
    digest: str,
) -> Trust:
    """Return the calibration of logits on labelled pictures.

    The prediction sets rest on the logits as they are, so that the temperature, which is
    found on the same pictures, does not change their coverage.

    Args:
        logits: float [N, classes], all finite.
        present: which labels each picture has, bool of the same shape.
        scores: `softmax` or `sigmoid`.
        coverages: of the prediction sets, each above 0 and below 1.
        data: what the pictures are called.
        digest: `sha256:<hex>` of the pictures.

    Raises:
        foveate_runtime.trust.sets.TooFewError: too few pictures for a coverage.
    """
    # Data sets lie in folders by class, and the hard half of MNIST comes last.
    order = np.random.default_rng(_SEED).permutation(len(logits))
    logits, present = logits[order], present[order]
    if scores == "sigmoid":
        temperatures = temperature.fit_sigmoid(logits, present)
    else:
        one = temperature.fit_softmax(logits, present.argmax(axis=1))
        temperatures = None if one is None else [one]
    trust = Trust(
        data=data,
        images=len(logits),
        digest=digest,
        created=datetime.now(UTC).replace(microsecond=0),
        temperatures=tuple(temperatures or ()),
        sets=tuple(sets.fit(logits, present, each, scores) for each in sorted(set(coverages))),
        outlier=outliers.DEFAULT,
        outliers=outliers.tables(logits, scores),
    )
    reference = drift.make_reference(Assessor(trust, Policy(), scores), logits, scores)
    return trust.model_copy(update={"drift": reference})
