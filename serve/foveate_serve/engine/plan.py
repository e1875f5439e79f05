"""A request for a classification, checked against the bundle that answers it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import LOGITS_OUTPUT, Manifest, Scores
from foveate_serve.classification import Cam, FeatureMap, Prediction, Request, Result, Trust
from foveate_serve.engine import explain, masks
from foveate_serve.engine.explain import CamPlan, ExplanationLimits, FeatureMapPlan
from foveate_serve.engine.job import Chunk, JobPlan
from foveate_serve.engine.trust import TrustPlan, assess, plan_trust
from foveate_serve.errors import InvalidRequestError
from foveate_serve.repository.loaded import LoadedModel

DEFAULT_TOP_K = 5


@dataclass(frozen=True, kw_only=True)
class Plan(JobPlan[Result]):
    """A request, checked against the bundle that answers it.

    `ranks` is how many of the best classes the answer needs.
    """

    top_k: int
    threshold: float | None
    scores: Scores
    cam: CamPlan | None
    features: tuple[FeatureMapPlan, ...]
    trust: TrustPlan | None
    ranks: int

    def mask(self, model: LoadedModel, chunk: Chunk) -> NDArray[np.uint8]:
        """Return the masked copies that the map is made of, or tried on."""
        values = None
        if self.cam is not None and not self.cam.occludes:
            values = chunk.batched.outputs[self.cam.output][0, 0]
        spec = model.bundle.manifest.input
        return masks.make_copies(chunk.pixels[0], spec, values, self.copies)

    def draw(self, model: LoadedModel, chunks: Sequence[Chunk]) -> Callable[..., Result]:
        """Make the answer of the scores, the maps and the feature maps."""
        (chunk,) = chunks
        batched, labels, manifest = chunk.batched, model.bundle.labels, model.bundle.manifest
        ranking, row = batched.ranking, batched.row
        best = ranking.best(row, self.ranks)
        if model.drift is not None:
            model.drift.observe(ranking.logits[row])
        cams: tuple[Cam, ...] = ()
        if self.cam is not None:
            logits = ranking.logits[row]
            maps = (
                masks.occlude(logits, chunk.masked, self.cam.classes(best))
                if self.cam.occludes and chunk.masked is not None
                else batched.outputs[self.cam.output][0]
            )
            cams = explain.draw(self.cam, maps, best, labels, chunk.pixels[0], logits=logits)
            if self.cam.check and chunk.masked is not None:
                (cam,) = cams
                found = masks.judge(logits, chunk.masked, cam.class_id, self.scores)
                cams = (replace(cam, check=found),)
        feature_maps: tuple[FeatureMap, ...] = ()
        if self.features:
            layers = [batched.outputs[wanted.output][0] for wanted in self.features]
            feature_maps = tuple(map(explain.select, self.features, layers))

        scores = ranking.scores(self.scores)[row]
        best = best[: self.top_k]
        if self.threshold is not None:
            best = best[scores[best] >= self.threshold]
        ids = best.tolist()
        trust: Trust | None = None
        confidences: tuple[list[float], ...] = ()
        if self.trust is not None and model.assessor is not None:
            trust, confidence = assess(self.trust, model.assessor, ranking.logits[row])
            confidences = () if confidence is None else (confidence[best].tolist(),)
        predictions = map(
            Prediction,
            ids,
            map(labels.__getitem__, ids),
            scores[best].tolist(),
            ranking.logits[row, best].tolist(),
            *confidences,
        )
        return partial(
            Result,
            model=model.name,
            version=model.version,
            scores=manifest.scores,
            predictions=tuple(predictions),
            cams=cams,
            feature_maps=feature_maps,
            view=chunk.view,
            trust=trust,
        )


def make_plan(request: Request, manifest: Manifest, limits: ExplanationLimits) -> Plan:
    """Check a request against the bundle; raises InvalidRequestError and NotReadyError."""
    top_k = _top_k(request, manifest.classes)
    outputs: tuple[str, ...] = (LOGITS_OUTPUT,)
    class_ids: tuple[int, ...] = ()
    cam: CamPlan | None = None
    features: tuple[FeatureMapPlan, ...] = ()
    trust = None if request.trust is None else plan_trust(request.trust, manifest)
    if request.threshold is not None:
        _check_threshold(request.threshold, manifest.scores)
    if request.cam is not None:
        cam = explain.plan_cam(request.cam, manifest, limits)
        if not cam.occludes:
            outputs, class_ids = (LOGITS_OUTPUT, cam.output), cam.class_ids
    if request.feature_maps:
        features = explain.plan_features(request.feature_maps, manifest, limits)
        # The layers in one order, so that pictures asking for the same share a batch.
        outputs += tuple(sorted(feature.output for feature in features))
    return Plan(
        top_k=top_k,
        threshold=request.threshold,
        scores=manifest.scores,
        cam=cam,
        features=features,
        trust=trust,
        outputs=outputs,
        class_ids=(class_ids,),
        # A map's class id -1 means the best class.
        ranks=top_k if cam is None else max(top_k, -min(cam.class_ids)),
        draws=cam is not None and cam.draws,
        copies=0 if cam is None else cam.copies,
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


def _check_threshold(wanted: float, scores: Scores) -> None:
    if (scores == "none" and math.isfinite(wanted)) or 0 <= wanted <= 1:
        return
    limit = "a finite number" if scores == "none" else "0 to 1"
    raise InvalidRequestError(
        "THRESHOLD_OUT_OF_RANGE",
        f"threshold is {wanted:g}; the limit is {limit}, by the model's scores ({scores})",
        field="threshold",
        metadata={"limit": limit},
    )
