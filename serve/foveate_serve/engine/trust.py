"""Checks requests for the trust in an answer, and computes it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.backends.base import TensorSpec
from foveate_runtime.bundle.manifest import Manifest
from foveate_runtime.bundle.trust import SetMethod
from foveate_runtime.trust.answer import Assessor, CoverageError, find_thresholds
from foveate_serve.classification import Trust, TrustRequest
from foveate_serve.errors import InvalidRequestError, NotReadyError

TRUST_PREFIX = "trust."
CONFIDENCE, PREDICTION_SET, OOD_PERCENTILE, ABSTAINED = (
    TRUST_PREFIX + name for name in ("confidence", "prediction_set", "ood_percentile", "abstained")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustPlan:
    """The coverage, one that was calibrated, and the kind of the prediction set."""

    coverage: float
    set_method: SetMethod


def plan_trust(request: TrustRequest, manifest: Manifest) -> TrustPlan:
    """Check a request against the bundle's calibration.

    Raises:
        InvalidRequestError: the coverage is none, or was not calibrated.
        NotReadyError: the bundle was not calibrated.
    """
    wanted = request.coverage
    if wanted is not None and not 0 < wanted < 1:
        raise InvalidRequestError(
            "COVERAGE_OUT_OF_RANGE",
            f"coverage is {wanted:g}; it must be above 0 and below 1",
            field="trust.coverage",
            metadata={"minimum": 0, "limit": 1},
        )
    trusts = [variant.trust for variant in manifest.variants if variant.trust is not None]
    if len(trusts) < len(manifest.variants):
        raise NotReadyError(
            "NOT_CALIBRATED",
            "the model was not calibrated, so nothing is known of how far its answers can be "
            "believed: run foveate calibrate BUNDLE --data DIR, with labelled pictures, and serve "
            "the version that it writes",
        )
    try:
        found = find_thresholds(trusts[0], wanted, request.set_method)
    except CoverageError as error:
        raise InvalidRequestError(
            "SET_NOT_CALIBRATED",
            str(error),
            field="trust",
            metadata={"coverages": ", ".join(f"{each.coverage:g}" for each in trusts[0].sets)},
        ) from error
    return TrustPlan(coverage=found.coverage, set_method=request.set_method)


def trust_outputs(manifest: Manifest) -> dict[str, TensorSpec]:
    """Return the outputs with the trust in an answer; none without a calibration.

    Float32: the `confidence` and membership in the `prediction_set`, 1 or 0, of every class;
    the `ood_percentile`, and 1 where the model has `abstained`.
    """
    trusts = [variant.trust for variant in manifest.variants if variant.trust is not None]
    if len(trusts) < len(manifest.variants):
        return {}
    each = TensorSpec(dtype=np.dtype(np.float32), shape=(None, manifest.classes))
    one = TensorSpec(dtype=np.dtype(np.float32), shape=(None, 1))
    outputs = {CONFIDENCE: each, PREDICTION_SET: each, OOD_PERCENTILE: one, ABSTAINED: one}
    if not all(trust.temperatures for trust in trusts):
        del outputs[CONFIDENCE]
    return outputs


def compute(
    plan: TrustPlan, assessor: Assessor, logits: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Return all of `trust_outputs` for logits [N, classes]."""
    found = assessor.assess(logits, plan.coverage, plan.set_method)
    members = np.zeros(logits.shape, np.float32)
    for row, each in enumerate(found):
        members[row, list(each.prediction_set)] = 1
    outputs = {
        PREDICTION_SET: members,
        OOD_PERCENTILE: np.array([[each.ood_percentile] for each in found], np.float32),
        ABSTAINED: np.array([[each.abstained] for each in found], np.float32),
    }
    confidence = assessor.confidence(logits)
    if confidence is not None:
        outputs[CONFIDENCE] = confidence.astype(np.float32)
    return outputs


def assess(
    plan: TrustPlan, assessor: Assessor, logits: NDArray[np.float32]
) -> tuple[Trust, NDArray[np.float64] | None]:
    """Return the trust in the logits of one picture, [classes], and the confidences."""
    (found,) = assessor.assess(logits[np.newaxis], plan.coverage, plan.set_method)
    trust = Trust(
        coverage=found.coverage,
        prediction_set=found.prediction_set,
        ood_percentile=found.ood_percentile,
        abstained=found.abstained,
        set_method=plan.set_method,
    )
    return trust, found.confidence
