"""Requests for the outputs of the graph itself, checked against the bundle."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.backends.base import graph_outputs
from foveate_runtime.bundle.manifest import CAM_PREFIX, FEATURES_PREFIX, LOGITS_OUTPUT, Manifest
from foveate_serve.classification import ANSWER_BYTES, Answer, TrustRequest
from foveate_serve.engine.explain import ExplanationLimits
from foveate_serve.engine.job import Chunk, JobPlan
from foveate_serve.engine.pictures import require_size
from foveate_serve.engine.trust import (
    TRUST_PREFIX,
    TrustPlan,
    compute,
    plan_trust,
    trust_outputs,
)
from foveate_serve.errors import InvalidRequestError, clip, listing, quote
from foveate_serve.repository.loaded import LoadedModel

BEST_CLASS = -1
"""The class id by which the graph means the best class of a picture."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GraphRequest:
    """A request for outputs of the graph for one or more pictures.

    `images` are encoded files, or the pixels of all, uint8 [N, height, width,
    channels] of the classifier's size. `outputs` are names of the graph contract.
    `class_ids`, int64 [N, K], are the classes that maps explain, with the
    contract's negative values; None means the best class of each picture.
    `trust` selects the prediction sets, for outputs of trust.
    `model`, `version` and `priority` as in Request.
    """

    images: Sequence[bytes] | NDArray[np.uint8]
    outputs: Sequence[str] = (LOGITS_OUTPUT,)
    class_ids: NDArray[np.int64] | None = None
    trust: TrustRequest | None = None
    model: str = ""
    version: str = ""
    priority: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GraphResult(Answer):
    """The outputs asked for, by name, each float32 with the pictures as its first dimension.

    The timing has the slowest picture of each stage.
    """

    outputs: Mapping[str, NDArray[np.float32]]
    labels: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many bytes of memory the answer takes, roughly."""
        return ANSWER_BYTES + sum(output.nbytes for output in self.outputs.values())


@dataclass(frozen=True, kw_only=True)
class GraphPlan(JobPlan[GraphResult]):
    """The outputs to compute, in the contract's order, and the class ids of each picture."""

    trust: TrustPlan | None = None

    def locate(self, error: InvalidRequestError, picture: int) -> InvalidRequestError:
        """Return the error of one picture with the field that the request has it in."""
        alone = len(self.class_ids) == 1
        message = error.message if alone else f"picture {picture}: {error.message}"
        return error.at(f"images[{picture}]", message)

    def draw(self, model: LoadedModel, chunks: Sequence[Chunk]) -> Callable[..., GraphResult]:
        """Put the outputs of the chunks together."""
        outputs = {
            name: np.concatenate([chunk.batched.outputs[name] for chunk in chunks])
            for name in self.outputs
        }
        if model.drift is not None and LOGITS_OUTPUT in outputs:
            model.drift.observe(outputs[LOGITS_OUTPUT])
        if self.trust is not None and model.assessor is not None:
            outputs |= compute(self.trust, model.assessor, outputs[LOGITS_OUTPUT])
        return partial(
            GraphResult,
            model=model.name,
            version=model.version,
            outputs=outputs,
            labels=model.bundle.labels,
        )


def make_graph_plan(
    request: GraphRequest, manifest: Manifest, limits: ExplanationLimits
) -> GraphPlan:
    """Check a request against the bundle; raises InvalidRequestError."""
    if isinstance(request.images, np.ndarray):
        require_size(request.images.shape[1:], manifest.input, "images")
    graph = graph_outputs(manifest)
    known = graph | trust_outputs(manifest)
    trust = None
    if request.trust is not None or any(x.startswith(TRUST_PREFIX) for x in request.outputs):
        trust = plan_trust(request.trust or TrustRequest(), manifest)
    for index, name in enumerate(request.outputs):
        if name not in known:
            raise InvalidRequestError(
                "OUTPUT_NOT_FOUND",
                f"no output {quote(name)}; there are {listing(known)}",
                field=f"outputs[{index}]",
                metadata={"output": clip(name)},
            )
    _check_size(request, manifest, limits)
    # In the contract's order, so that requests for the same outputs share a batch.
    outputs = tuple(
        name
        for name in graph
        if name in request.outputs or (name == LOGITS_OUTPUT and trust is not None)
    )
    if request.class_ids is not None:
        _check_class_ids(request.class_ids, len(request.images), manifest, limits)
    if not any(name.startswith(CAM_PREFIX) for name in outputs):
        class_ids: tuple[tuple[int, ...], ...] = ((),) * len(request.images)
    elif request.class_ids is None:
        class_ids = ((BEST_CLASS,),) * len(request.images)
    else:
        class_ids = tuple(tuple(row) for row in request.class_ids.tolist())
    return GraphPlan(outputs=outputs, class_ids=class_ids, trust=trust)


def _check_size(request: GraphRequest, manifest: Manifest, limits: ExplanationLimits) -> None:
    size = len(request.images) * sum(
        np.dtype(np.float32).itemsize * layer.channels * layer.height * layer.width
        for layer in manifest.features
        if FEATURES_PREFIX + layer.layer in request.outputs
    )
    if size > limits.max_feature_bytes:
        raise InvalidRequestError(
            "FEATURE_MAPS_TOO_LARGE",
            f"the feature maps would have {size} bytes; "
            f"the limit is {limits.max_feature_bytes} bytes",
            field="outputs",
            metadata={"limit": limits.max_feature_bytes},
        )


def _check_class_ids(
    class_ids: NDArray[np.int64], images: int, manifest: Manifest, limits: ExplanationLimits
) -> None:
    if not manifest.cams:
        raise InvalidRequestError(
            "CLASS_IDS_UNUSED",
            "the model has no maps, so class ids have no effect",
            field="class_ids",
        )
    if class_ids.ndim != 2 or len(class_ids) != images:
        raise InvalidRequestError(
            "SHAPE_MISMATCH",
            f"the class ids have the shape {list(class_ids.shape)}; "
            f"it must be [{images}, K], a row for each picture",
            field="class_ids",
            metadata={"limit": images},
        )
    if class_ids.shape[1] > limits.max_cam_classes:
        raise InvalidRequestError(
            "TOO_MANY_CAM_CLASSES",
            f"{class_ids.shape[1]} classes to explain; the limit is {limits.max_cam_classes}",
            field="class_ids",
            metadata={"limit": limits.max_cam_classes},
        )
    low, high = -manifest.ranks, manifest.classes - 1
    for class_id in (int(class_ids.min()), int(class_ids.max())):
        if not low <= class_id <= high:
            raise InvalidRequestError(
                "CLASS_ID_OUT_OF_RANGE",
                f"the class id {class_id}; the limit is {low} to {high}",
                field="class_ids",
                metadata={"minimum": low, "limit": high},
            )
