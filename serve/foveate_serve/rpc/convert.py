"""Converts the protocol's messages to the engine's types, and back."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from foveate.v1 import classifier_service_pb2, explanation_pb2, model_pb2
from foveate_runtime.bundle.manifest import Manifest, VariantEntry
from foveate_runtime.bundle.trust import SetMethod
from foveate_runtime.evaluation.labelled import wordnet_ids
from foveate_runtime.imaging.heatmap import Encoding
from foveate_runtime.imaging.transform import View
from foveate_serve.batching.policy import BatchPolicy
from foveate_serve.classification import (
    DEFAULT_OPACITY,
    Cam,
    CamForm,
    CamRequest,
    FeatureMap,
    FeatureMapRequest,
    RawImage,
    Request,
    Result,
    Timing,
    Trust,
    TrustRequest,
)
from foveate_serve.errors import InvalidRequestError
from foveate_serve.repository.loaded import LoadedModel
from foveate_serve.repository.versions import ModelStatus, State
from foveate_serve.rpc.priority import priority_of

T = TypeVar("T")

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

_FORMS: Mapping[int, CamForm] = {
    explanation_pb2.HEATMAP_FORM_UNSPECIFIED: "raw",
    explanation_pb2.HEATMAP_FORM_RAW: "raw",
    explanation_pb2.HEATMAP_FORM_HEATMAP: "heatmap",
    explanation_pb2.HEATMAP_FORM_OVERLAY: "overlay",
}
_ENCODINGS: Mapping[int, Encoding] = {
    explanation_pb2.PICTURE_ENCODING_UNSPECIFIED: "png",
    explanation_pb2.PICTURE_ENCODING_PNG: "png",
    explanation_pb2.PICTURE_ENCODING_JPEG: "jpeg",
}
_SET_METHODS: Mapping[int, SetMethod] = {
    classifier_service_pb2.SET_METHOD_UNSPECIFIED: "lac",
    classifier_service_pb2.SET_METHOD_LAC: "lac",
    classifier_service_pb2.SET_METHOD_RAPS: "raps",
}
_STATES: Mapping[State, model_pb2.ModelState.ValueType] = {
    State.LOADING: model_pb2.MODEL_STATE_LOADING,
    State.READY: model_pb2.MODEL_STATE_READY,
    State.UNLOADING: model_pb2.MODEL_STATE_UNLOADING,
    State.UNLOADED: model_pb2.MODEL_STATE_UNLOADED,
    State.FAILED: model_pb2.MODEL_STATE_FAILED,
    State.ON_DEMAND: model_pb2.MODEL_STATE_ON_DEMAND,
}


def to_request(message: classifier_service_pb2.ClassifyRequest) -> Request:
    """Read a request; raises InvalidRequestError."""
    return Request(
        image=_to_image(message),
        model=message.model,
        version=message.version,
        top_k=message.top_k if message.HasField("top_k") else None,
        threshold=message.threshold if message.HasField("threshold") else None,
        cam=_to_cam_request(message.cam) if message.HasField("cam") else None,
        feature_maps=tuple(map(_to_feature_request, message.feature_maps)),
        trust=_to_trust_request(message.trust) if message.HasField("trust") else None,
        priority=priority_of(message.priority, field="priority"),
    )


def from_result(result: Result, *, timing: bool) -> classifier_service_pb2.ClassifyResponse:
    """Write a result, with its times where `timing` is set."""
    return classifier_service_pb2.ClassifyResponse(
        model=result.model,
        version=result.version,
        scores=result.scores,
        predictions=[
            classifier_service_pb2.Prediction(
                class_id=prediction.class_id,
                label=prediction.label,
                score=prediction.score,
                logit=prediction.logit,
                confidence=prediction.confidence,
            )
            for prediction in result.predictions
        ],
        cams=map(_from_cam, result.cams),
        feature_maps=map(_from_feature_map, result.feature_maps),
        view=_from_view(result.view),
        timing=_from_timing(result.timing) if timing else None,
        trust=None if result.trust is None else _from_trust(result.trust),
        warnings=result.view.warnings,
    )


def from_status(status: ModelStatus) -> model_pb2.ModelSummary:
    """Write a model's summary for a list."""
    return model_pb2.ModelSummary(
        name=status.name,
        versions=[
            model_pb2.ModelVersion(
                version=str(version.version), state=_STATES[version.state], reason=version.reason
            )
            for version in status.versions
        ],
        default_version="" if status.default_version is None else str(status.default_version),
        version_labels={label: str(version) for label, version in status.labels.items()},
    )


def from_model(model: LoadedModel) -> model_pb2.Model:
    """Write everything about a model that serves."""
    manifest = model.bundle.manifest
    spec = manifest.input
    create_time = Timestamp()
    create_time.FromDatetime(manifest.created)
    return model_pb2.Model(
        name=manifest.name,
        version=str(manifest.version),
        state=model_pb2.MODEL_STATE_READY,
        classifier=manifest.classifier,
        labels=model.bundle.labels,
        wordnet_ids=wordnet_ids(len(model.bundle.labels)),
        input=model_pb2.InputSpec(
            height=spec.height,
            width=spec.width,
            channels=spec.channels,
            resize=spec.resize,
            interpolation=spec.interpolation,
            mean=spec.mean,
            std=spec.std,
            fit=spec.fit,
            fill=(spec.fill or spec.mean) if spec.fit == "pad" else (),
        ),
        layers=[
            model_pb2.Layer(
                name=layer.layer,
                channels=layer.channels,
                height=layer.height,
                width=layer.width,
                layout=layer.layout,
            )
            for layer in manifest.features
        ],
        cam_methods=[
            model_pb2.CamMethod(
                name=cam.method,
                layer=cam.layer,
                height=cam.height,
                width=cam.width,
                layout=cam.layout,
            )
            for cam in manifest.cams
        ],
        variants=[_from_variant(variant, manifest) for variant in manifest.variants],
        active_variant=model.runner.variant,
        backend=model.runner.backend,
        device=model.runner.device,
        create_time=create_time,
        parameters=manifest.parameters,
        batching=from_policy(model.batcher.policy),
        scores=manifest.scores,
        assumptions=manifest.assumptions,
        coverages=() if model.assessor is None else model.assessor.coverages,
    )


def page(
    models: Sequence[ModelStatus], request: classifier_service_pb2.ListModelsRequest
) -> classifier_service_pb2.ListModelsResponse:
    """Return a page of a list that is sorted by name; raises InvalidRequestError."""
    if request.page_size < 0:
        raise InvalidRequestError(
            "PAGE_SIZE_OUT_OF_RANGE",
            f"page_size is {request.page_size}; the limit is 0 or more",
            field="page_size",
            metadata={"minimum": 0},
        )
    size = min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    after = _from_token(request.page_token)
    rest = [model for model in models if model.name > after]
    more = len(rest) > size
    return classifier_service_pb2.ListModelsResponse(
        models=[from_status(model) for model in rest[:size]],
        next_page_token=_to_token(rest[size - 1].name) if more else "",
    )


def _to_token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _from_token(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise InvalidRequestError(
            "PAGE_TOKEN_INVALID",
            "page_token is not from an earlier answer",
            field="page_token",
        ) from error


def _to_image(message: classifier_service_pb2.ClassifyRequest) -> bytes | RawImage:
    kind = message.WhichOneof("image")
    if kind is None:
        raise InvalidRequestError(
            "IMAGE_MISSING", "the request has no picture: set encoded or raw", field="image"
        )
    if kind == "encoded":
        return message.encoded
    raw = message.raw
    return RawImage(height=raw.height, width=raw.width, channels=raw.channels, data=raw.data)


def _to_cam_request(options: explanation_pb2.CamOptions) -> CamRequest:
    forms = frozenset(
        _choice(_FORMS, form, f"cam.forms[{index}]") for index, form in enumerate(options.forms)
    )
    return CamRequest(
        method=options.method,
        class_ids=tuple(options.class_ids),
        top=options.top if options.HasField("top") else None,
        against=options.against if options.HasField("against") else None,
        check=options.check,
        forms=forms or frozenset({"raw"}),
        width=options.width,
        height=options.height,
        encoding=_choice(_ENCODINGS, options.encoding, "cam.encoding"),
        opacity=options.opacity if options.HasField("opacity") else DEFAULT_OPACITY,
    )


def _to_trust_request(options: classifier_service_pb2.TrustOptions) -> TrustRequest:
    return TrustRequest(
        coverage=options.coverage if options.HasField("coverage") else None,
        set_method=_choice(_SET_METHODS, options.set_method, "trust.set_method"),
    )


def _from_trust(trust: Trust) -> classifier_service_pb2.Trust:
    return classifier_service_pb2.Trust(
        coverage=trust.coverage,
        prediction_set=trust.prediction_set,
        ood_percentile=trust.ood_percentile,
        abstained=trust.abstained,
        set_method=classifier_service_pb2.SET_METHOD_RAPS
        if trust.set_method == "raps"
        else classifier_service_pb2.SET_METHOD_LAC,
    )


def _to_feature_request(options: explanation_pb2.FeatureMapOptions) -> FeatureMapRequest:
    return FeatureMapRequest(layer=options.layer, channels=tuple(options.channels))


def _choice(choices: Mapping[int, T], value: int, field: str) -> T:
    if value not in choices:
        raise InvalidRequestError(
            "VALUE_UNKNOWN",
            f"{field} is {value}; the limit is 0 to {max(choices)}",
            field=field,
            metadata={"minimum": 0, "limit": max(choices)},
        )
    return choices[value]


def _from_cam(cam: Cam) -> explanation_pb2.Cam:
    return explanation_pb2.Cam(
        class_id=cam.class_id,
        label=cam.label,
        method=cam.method,
        layer=cam.layer,
        height=cam.height,
        width=cam.width,
        minimum=cam.minimum,
        maximum=cam.maximum,
        values=b"" if cam.values is None else _to_bytes(cam.values),
        heatmap=cam.heatmap or b"",
        overlay=cam.overlay or b"",
        against=cam.against,
        explained=cam.explained,
        check=None if cam.check is None else explanation_pb2.MapCheck(**cam.check._asdict()),
    )


def _from_feature_map(features: FeatureMap) -> explanation_pb2.FeatureMap:
    _, height, width = features.values.shape
    return explanation_pb2.FeatureMap(
        layer=features.layer,
        channels=features.channels,
        height=height,
        width=width,
        minimum=features.values.min(),
        maximum=features.values.max(),
        values=_to_bytes(features.values),
    )


def _to_bytes(values: NDArray[np.float32]) -> bytes:
    return values.astype("<f4", copy=False).tobytes()


def _from_view(view: View) -> explanation_pb2.View:
    return explanation_pb2.View(
        source_width=view.source_width,
        source_height=view.source_height,
        left=view.left,
        top=view.top,
        width=view.width,
        height=view.height,
    )


def _from_timing(timing: Timing) -> classifier_service_pb2.Timing:
    return classifier_service_pb2.Timing(
        decode=_to_duration(timing.decode),
        queue=_to_duration(timing.queue),
        infer=_to_duration(timing.infer),
        encode=_to_duration(timing.encode),
        total=_to_duration(timing.total),
        batch_size=timing.batch_size,
        backend=timing.backend,
        device=timing.device,
        variant=timing.variant,
        cached=timing.cached,
    )


def _to_duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def from_policy(policy: BatchPolicy) -> model_pb2.Batching:
    """Write how a model's requests are batched."""
    objective = policy.objective
    return model_pb2.Batching(
        instances=len(policy.cores),
        max_batch=policy.max_batch,
        preferred_batches=policy.preferred_sizes,
        max_delay=_to_duration(policy.max_delay),
        max_queue=policy.max_queue,
        priorities=policy.priorities,
        latency_objective=None if objective is None else _to_duration(objective),
    )


def _from_variant(variant: VariantEntry, manifest: Manifest) -> model_pb2.Variant:
    parity, accuracy = variant.parity, variant.accuracy
    return model_pb2.Variant(
        name=variant.name,
        size=manifest.files[variant.file].size,
        parity=model_pb2.Parity(
            images=parity.images,
            logits_max_abs=parity.logits_max_abs,
            top1_agreement=parity.top1_agreement,
            cams=parity.cams,
            features=parity.features,
        ),
        accuracy=None
        if accuracy is None
        else model_pb2.Accuracy(
            data=accuracy.data, images=accuracy.images, top1=accuracy.top1, top5=accuracy.top5
        ),
    )
