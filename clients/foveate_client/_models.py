"""The models of a server, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from foveate.v1 import model_pb2 as proto

DEFAULT_SCORES = "softmax"
"""The kind of scores of an older server, which does not name it."""


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One version of a model.

    `state` is "loading", "ready", "unloading", "unloaded", "failed", or
    "on_demand" where the first request for it loads it;
    `reason` says why the last load failed and is empty otherwise.
    """

    version: str
    state: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """A model in a list: its versions, newest first, and the one that answers by default.

    `version_labels` maps labels to versions; a request may name either.
    """

    name: str
    versions: tuple[ModelVersion, ...]
    default_version: str
    version_labels: Mapping[str, str]

    @classmethod
    def from_message(cls, message: proto.ModelSummary) -> Self:
        """Read an answer of the service."""
        return cls(
            name=message.name,
            versions=tuple(
                ModelVersion(version=v.version, state=_state(v.state), reason=v.reason)
                for v in message.versions
            ),
            default_version=message.default_version,
            version_labels=dict(sorted(message.version_labels.items())),
        )


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How the server makes a picture the classifier's input.

    A picture of `height` x `width` pixels is taken as it is. Any other is resized
    with the filter `interpolation` as `fit` says, and its centre of `height` x `width`
    pixels is taken: "crop" resizes its shorter side to `resize`, or to more where it
    would not cover the input; "squash" and "pad" take the input's frame, whose shorter
    side is `resize`: both sides become the frame's, or the picture fits into it beside
    the colour `fill`. `mean` and `std` are for reading: the graph normalises by itself.
    """

    height: int
    width: int
    channels: int
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "crop"
    fill: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer whose feature map can be asked for.

    `layout` is how the network lays it out inside: `nchw`, `nhwc` or
    `tokens(h, w, prefix)`. The feature map is [channels, height, width] all the same.
    """

    name: str
    channels: int
    height: int
    width: int
    layout: str = "nchw"


@dataclass(frozen=True, kw_only=True)
class CamMethod:
    """A class activation map that can be asked for, and the layer that it weighs."""

    name: str
    layer: str
    height: int
    width: int
    layout: str = "nchw"


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The differences of a variant from the classifier that it was exported from.

    `logits_max_abs` is the largest absolute difference; `top1_agreement` a
    share from 0 to 1; `cams` by method and `features` by layer are the largest
    difference relative to the largest absolute value.
    """

    images: int
    logits_max_abs: float
    top1_agreement: float
    cams: Mapping[str, float]
    features: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What a variant scores on labelled pictures; shares from 0 to 1."""

    data: str
    images: int
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One precision of a model; `size` is in bytes."""

    name: str
    size: int
    parity: Parity
    accuracy: Accuracy | None


@dataclass(frozen=True, kw_only=True)
class Model:
    """Everything about one version of one model.

    `scores` is how scores follow from its logits: "softmax", "sigmoid" or "none";
    `assumptions` is what the export found or assumed, by field; `wordnet_ids` are those
    of the classes where they are ImageNet's, and else none; `coverages` are those of the
    prediction sets that may be requested, none where the model was not calibrated.
    """

    name: str
    version: str
    state: str
    classifier: str
    labels: tuple[str, ...]
    input: InputSpec
    layers: tuple[Layer, ...]
    cam_methods: tuple[CamMethod, ...]
    variants: tuple[Variant, ...]
    active_variant: str
    backend: str
    device: str
    created: datetime
    parameters: int
    scores: str = DEFAULT_SCORES
    assumptions: Mapping[str, str] = field(default_factory=dict)
    wordnet_ids: tuple[str, ...] = ()
    coverages: tuple[float, ...] = ()

    @classmethod
    def from_message(cls, message: proto.Model) -> Self:
        """Read an answer of the service."""
        return cls(
            name=message.name,
            version=message.version,
            state=_state(message.state),
            classifier=message.classifier,
            labels=tuple(message.labels),
            input=InputSpec(
                height=message.input.height,
                width=message.input.width,
                channels=message.input.channels,
                resize=message.input.resize,
                interpolation=message.input.interpolation,
                mean=tuple(message.input.mean),
                std=tuple(message.input.std),
                fit=message.input.fit or "crop",  # an older server does not say
                fill=tuple(message.input.fill),
            ),
            layers=tuple(
                Layer(
                    name=x.name,
                    channels=x.channels,
                    height=x.height,
                    width=x.width,
                    layout=x.layout or "nchw",  # an older server does not say
                )
                for x in message.layers
            ),
            cam_methods=tuple(
                CamMethod(
                    name=x.name,
                    layer=x.layer,
                    height=x.height,
                    width=x.width,
                    layout=x.layout or "nchw",
                )
                for x in message.cam_methods
            ),
            variants=tuple(_variant(variant) for variant in message.variants),
            active_variant=message.active_variant,
            backend=message.backend,
            device=message.device,
            created=message.create_time.ToDatetime(UTC),
            parameters=message.parameters,
            scores=message.scores or DEFAULT_SCORES,
            assumptions=dict(sorted(message.assumptions.items())),
            wordnet_ids=tuple(message.wordnet_ids),
            coverages=tuple(message.coverages),
        )

    def _repr_html_(self) -> str:
        from foveate_client import _notebook  # noqa: PLC0415 - a notebook's alone

        return _notebook.model(self)


def _variant(variant: proto.Variant) -> Variant:
    return Variant(
        name=variant.name,
        size=variant.size,
        parity=Parity(
            images=variant.parity.images,
            logits_max_abs=variant.parity.logits_max_abs,
            top1_agreement=variant.parity.top1_agreement,
            cams=dict(variant.parity.cams),
            features=dict(variant.parity.features),
        ),
        accuracy=Accuracy(
            data=variant.accuracy.data,
            images=variant.accuracy.images,
            top1=variant.accuracy.top1,
            top5=variant.accuracy.top5,
        )
        if variant.HasField("accuracy")
        else None,
    )


def _state(value: int) -> str:
    known = proto.ModelState.DESCRIPTOR.values_by_number.get(value)
    # A newer server may know states that this client does not.
    return known.name.removeprefix("MODEL_STATE_").lower() if known else f"state {value}"
