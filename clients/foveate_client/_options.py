"""The options of a classification, and the requests that are made from them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Literal, TypedDict

from foveate.v1.classifier_service_pb2 import (
    SET_METHOD_LAC,
    SET_METHOD_RAPS,
    ClassifyRequest,
    SetMethod,
    TrustOptions,
)
from foveate.v1.explanation_pb2 import HEATMAP_FORM_RAW, CamOptions, FeatureMapOptions
from foveate_client._images import ImageInput, image_field

OCCLUSION = "occlusion"
"""The method that every model has: its map is computed from masked copies of the picture."""

CHECK_COPIES = 16
"""The masked copies that a map is tried on, where no number is given."""

_SET_METHODS: dict[str, SetMethod.ValueType] = {"lac": SET_METHOD_LAC, "raps": SET_METHOD_RAPS}


@dataclass(frozen=True, kw_only=True)
class Cam:
    """Asks for class activation maps.

    `method` is one of those that the model lists; empty takes the first.
    `class_ids` are classes to explain; `top` explains that many of the
    best-scored ones before them. With neither, the best class is explained.
    `against` is another class, from whose logit the difference of each of them is
    explained: its id, or below 0 its rank, -2 being the second best. `check` tries the
    map on so many masked copies of the picture, 8 to 32; True means 16. Every model has
    the method "occlusion", which takes 25 copies.
    """

    method: str = ""
    class_ids: Sequence[int] = ()
    top: int | None = None
    against: int | None = None
    check: int | bool = False


@dataclass(frozen=True, kw_only=True)
class TrustRequest:
    """Asks how far the answer can be believed, of a model that was calibrated.

    `coverage` is how often the prediction set is to hold the right class, one of
    those of the calibration; None takes the lowest. `set_method` is "lac", the
    smallest sets on average, which may be empty, or "raps", the best classes.
    """

    coverage: float | None = None
    set_method: Literal["lac", "raps"] = "lac"


@dataclass(frozen=True)
class Features:
    """Asks for the feature map of one layer.

    `layer` is one of those that the model lists; `channels` are the channels
    wanted, in their order, and none means all of them.
    """

    layer: str
    channels: Sequence[int] = ()


class ClassifyOptions(TypedDict, total=False):
    """The keyword arguments of `classify` and `classify_many` beside the picture."""

    model: str
    """The model; unset, the only one that the server serves."""
    version: str
    """The version; unset, the model's default one."""
    top_k: int
    """How many of the best classes to return; unset, five, or all that reach `threshold`."""
    threshold: float
    """The least score of a class that is returned; unset, any."""
    cam: Cam
    """The class activation maps wanted; unset, none."""
    feature_maps: Sequence[Features | str]
    """The feature maps wanted, by layer; unset, none."""
    trust: TrustRequest | bool
    """Whether the answer says how far it can be believed; unset, it does not."""
    timing: bool
    """Whether the answer contains the time of each stage; unset, it does not."""
    priority: int
    """The priority, 1 the highest; unset, the model's default."""


def classify_request(
    image: ImageInput,
    *,
    model: str = "",
    version: str = "",
    top_k: int | None = None,
    threshold: float | None = None,
    cam: Cam | None = None,
    feature_maps: Sequence[Features | str] = (),
    trust: TrustRequest | bool = False,
    timing: bool = False,
    priority: int = 0,
) -> ClassifyRequest:
    """Return the request for `image`.

    Raises ImageError where it cannot be read, and TypeError where an option has
    another form than ClassifyOptions names.
    """
    _require(model, str, "model is a name, such as 'mnist'")
    _require(version, str, "version is a string, such as '1' or 'stable'")
    _require(cam, Cam | None, "cam is a Cam, such as Cam(method='gradcam') or Cam(top=3)")
    _require_list(feature_maps, "feature_maps is a list of layers, such as ['blocks.6']")
    return ClassifyRequest(
        model=model,
        version=version,
        top_k=top_k,
        threshold=threshold,
        cam=None if cam is None else _cam_options(cam),
        feature_maps=[_feature_map_options(wanted) for wanted in feature_maps],
        trust=_trust_options(trust),
        timing=timing,
        priority=priority,
        **image_field(image),
    )


def _require(value: object, kind: type | UnionType, form: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{form}, not {value!r}")


def _require_list(value: object, form: str) -> None:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{form}, not {value!r}")


def _cam_options(cam: Cam) -> CamOptions:
    _require(cam.method, str, "method is the name of a map, such as 'gradcam'")
    _require_list(cam.class_ids, "class_ids is a list of classes, such as [281]")
    # Only raw maps are asked for: the library draws them, over the original and not the crop.
    return CamOptions(
        method=cam.method,
        class_ids=cam.class_ids,
        top=cam.top,
        against=cam.against,
        check=CHECK_COPIES if cam.check is True else int(cam.check),
        forms=[HEATMAP_FORM_RAW],
    )


def _trust_options(trust: TrustRequest | bool) -> TrustOptions | None:
    _require(trust, bool | TrustRequest, "trust is True or TrustRequest(coverage=0.9)")
    if trust is False:
        return None
    wanted = TrustRequest() if trust is True else trust
    return TrustOptions(coverage=wanted.coverage, set_method=_SET_METHODS[wanted.set_method])


def _feature_map_options(wanted: Features | str) -> FeatureMapOptions:
    _require(wanted, str | Features, "a feature map is a layer's name or Features('blocks.6')")
    features = Features(wanted) if isinstance(wanted, str) else wanted
    return FeatureMapOptions(layer=features.layer, channels=features.channels)
