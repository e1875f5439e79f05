"""A request for a classification, checked against the bundle that answers it."""

import math
from dataclasses import dataclass

from foveate_runtime.bundle.manifest import LOGITS_OUTPUT, Manifest, Scores
from foveate_serve.classification import Request
from foveate_serve.engine import explain
from foveate_serve.engine.explain import CamPlan, ExplanationLimits, FeatureMapPlan
from foveate_serve.errors import InvalidRequestError

DEFAULT_TOP_K = 5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request, checked against the bundle that answers it."""

    top_k: int
    threshold: float | None
    scores: Scores
    cam: CamPlan | None
    features: tuple[FeatureMapPlan, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs of the graph that the answer needs."""
        # The layers in one order, so that pictures asking for the same share a batch.
        features = sorted(plan.output for plan in self.features)
        return (LOGITS_OUTPUT, *([self.cam.output] if self.cam else []), *features)

    @property
    def class_ids(self) -> tuple[int, ...]:
        """The classes whose maps are asked for."""
        return self.cam.class_ids if self.cam else ()

    @property
    def ranks(self) -> int:
        """How many of the best classes the answer needs; a map's class id -1 means the best."""
        return max(self.top_k, -min(self.class_ids, default=0))

    @property
    def draws(self) -> bool:
        """Whether the answer contains drawn pictures."""
        return self.cam is not None and self.cam.draws


def make_plan(request: Request, manifest: Manifest, limits: ExplanationLimits) -> Plan:
    """Check a request against the bundle; raises InvalidRequestError."""
    return Plan(
        top_k=_top_k(request, manifest.classes),
        threshold=_threshold(request.threshold, manifest.scores),
        scores=manifest.scores,
        cam=explain.plan_cam(request.cam, manifest, limits),
        features=explain.plan_features(request.feature_maps, manifest, limits),
    )


def _top_k(request: Request, classes: int) -> int:
    wanted = request.top_k
    if wanted is None:
        return classes if request.threshold is not None else min(DEFAULT_TOP_K, classes)
    if not 1 <= wanted <= classes:
        raise InvalidRequestError(
            "TOP_K_OUT_OF_RANGE",
            f"top_k is {wanted}; the limit is 1 to {classes}, the number of classes",
            field="top_k",
            metadata={"minimum": 1, "limit": classes},
        )
    return wanted


def _threshold(wanted: float | None, scores: Scores) -> float | None:
    if wanted is None or (scores == "none" and math.isfinite(wanted)) or 0 <= wanted <= 1:
        return wanted
    limit = "a finite number" if scores == "none" else "0 to 1"
    raise InvalidRequestError(
        "THRESHOLD_OUT_OF_RANGE",
        f"threshold is {wanted:g}; the limit is {limit}, by the model's scores ({scores})",
        field="threshold",
        metadata={"limit": limit},
    )
