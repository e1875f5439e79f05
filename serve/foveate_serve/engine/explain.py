"""Explanations: checks a request for them against the bundle, and makes those of the answer."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import CAM_PREFIX, FEATURES_PREFIX, CamOutput, Manifest
from foveate_runtime.imaging import heatmap
from foveate_runtime.imaging.heatmap import Encoding
from foveate_runtime.imaging.masking import GRID
from foveate_serve.classification import Cam, CamForm, CamRequest, FeatureMap, FeatureMapRequest
from foveate_serve.engine.masks import LEAST_COPIES, MOST_COPIES, OCCLUSION
from foveate_serve.errors import InvalidRequestError, clip, listing, quote

_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class ExplanationLimits:
    """The limits of one request: classes explained, side of a drawn map, bytes of feature maps."""

    max_cam_classes: int = 16
    max_picture_side: int = 1024
    max_feature_bytes: int = 16 << 20


@dataclass(frozen=True, kw_only=True)
class CamPlan:
    """The maps to compute and how to draw them.

    `class_ids` are those of the graph's input: -1 is the best class, -2 the second, and
    so on. With `against`, the last of them is the class whose map is subtracted from those
    of the others. `check` is the number of copies for the check of the map.
    """

    # Left out of the hash, as it may hold a number for every class.
    cam: CamOutput = field(compare=False)
    method: str
    class_ids: tuple[int, ...]
    against: bool
    check: int
    forms: frozenset[CamForm]
    width: int
    height: int
    encoding: Encoding
    opacity: float

    @property
    def output(self) -> str:
        """The graph's output."""
        method = self.cam.positive_of if self.against and self.cam.positive_of else self.cam.method
        return CAM_PREFIX + method

    @property
    def draws(self) -> bool:
        """Whether any of the maps is drawn."""
        return self.forms != {"raw"}

    @property
    def occludes(self) -> bool:
        """Whether the map is made of masked copies, and not by the graph."""
        return self.cam is OCCLUSION

    @property
    def copies(self) -> int:
        """How many masked copies it takes."""
        return GRID * GRID if self.occludes else self.check

    def classes(self, best: NDArray[np.int64]) -> list[int]:
        """Return the classes to explain, where `best` are the best ones."""
        return [wanted if wanted >= 0 else int(best[-wanted - 1]) for wanted in self.class_ids]


@dataclass(frozen=True, kw_only=True)
class FeatureMapPlan:
    """The layer and the channels to return."""

    layer: str
    channels: tuple[int, ...]
    whole: bool

    @property
    def output(self) -> str:
        """The graph's output."""
        return FEATURES_PREFIX + self.layer


def plan_cam(request: CamRequest, manifest: Manifest, limits: ExplanationLimits) -> CamPlan:
    """Check a request for maps against the bundle; raises InvalidRequestError."""
    top = (0 if request.class_ids else 1) if request.top is None else request.top
    _check_cam(request, top, manifest, limits)
    class_ids, against = (*range(-1, -top - 1, -1), *request.class_ids), request.against
    if against is not None and against in class_ids:
        raise _against_itself(against)
    cam = _method(request.method, manifest, linear=against is not None)
    if request.check:
        _check_check(request, top + len(request.class_ids), cam)
    return CamPlan(
        cam=cam,
        method=cam.method,
        class_ids=class_ids if against is None else (*class_ids, against),
        against=against is not None,
        check=request.check // 2 * 2,
        forms=request.forms,
        width=request.width or manifest.input.width,
        height=request.height or manifest.input.height,
        encoding=request.encoding,
        opacity=request.opacity,
    )


def plan_features(
    requests: tuple[FeatureMapRequest, ...], manifest: Manifest, limits: ExplanationLimits
) -> tuple[FeatureMapPlan, ...]:
    """Check requests for feature maps against the bundle; raises InvalidRequestError."""
    layers = {feature.layer: feature for feature in manifest.features}
    plans: dict[str, FeatureMapPlan] = {}
    size = 0
    for index, request in enumerate(requests):
        path = f"feature_maps[{index}]"
        feature = layers.get(request.layer)
        if feature is None:
            raise InvalidRequestError(
                "LAYER_NOT_FOUND",
                f"no layer {quote(request.layer)}; there are {listing(layers)}",
                field=f"{path}.layer",
                metadata={"layer": clip(request.layer)},
            )
        if request.layer in plans:
            raise InvalidRequestError(
                "LAYER_REPEATED",
                f"the layer {quote(request.layer)} is asked for twice",
                field=f"{path}.layer",
                metadata={"layer": clip(request.layer)},
            )
        for position, channel in enumerate(request.channels):
            if not 0 <= channel < feature.channels:
                raise InvalidRequestError(
                    "CHANNEL_OUT_OF_RANGE",
                    f"channel {channel}; the limit is 0 to {feature.channels - 1}",
                    field=f"{path}.channels[{position}]",
                    metadata={"minimum": 0, "limit": feature.channels - 1},
                )
        channels = request.channels or tuple(range(feature.channels))
        size += len(channels) * feature.height * feature.width * _FLOAT_BYTES
        if size > limits.max_feature_bytes:
            raise InvalidRequestError(
                "FEATURE_MAPS_TOO_LARGE",
                f"the feature maps would have {size} bytes or more; "
                f"the limit is {limits.max_feature_bytes} bytes",
                field=path,
                metadata={"limit": limits.max_feature_bytes},
            )
        plans[request.layer] = FeatureMapPlan(
            layer=request.layer, channels=channels, whole=not request.channels
        )
    return tuple(plans.values())


def draw(
    plan: CamPlan,
    maps: NDArray[np.float32],
    best: NDArray[np.int64],
    labels: tuple[str, ...],
    image: NDArray[np.uint8],
    *,
    logits: NDArray[np.float32],
) -> tuple[Cam, ...]:
    """Make the maps of an answer.

    `maps` are the raw ones, float32 [K, h, w]; `best` the best classes, as many as
    the plan names; `image` what the classifier saw, uint8 [height, width, channels];
    `logits` float32 [classes]. Raises InvalidRequestError where a class is explained
    against itself.
    """
    class_ids = plan.classes(best)
    against = None
    if plan.against:
        against = class_ids.pop()
        if against in class_ids:
            raise _against_itself(against)
        maps = maps[:-1] - maps[-1]
        if plan.cam.positive_of:
            maps = np.maximum(maps, 0)
    width, height = plan.width, plan.height
    canvas = heatmap.enlarge(image, width, height) if "overlay" in plan.forms else None
    cams = []
    for class_id, values in zip(class_ids, maps, strict=True):
        intensity = heatmap.intensity(values, width, height) if plan.draws else None
        cams.append(
            Cam(
                class_id=class_id,
                label=labels[class_id],
                method=plan.cam.method,
                layer=plan.cam.layer,
                height=plan.cam.height,
                width=plan.cam.width,
                minimum=float(values.min()),
                maximum=float(values.max()),
                values=values if "raw" in plan.forms else None,
                heatmap=heatmap.encode(heatmap.colourise(intensity, width, height), plan.encoding)
                if "heatmap" in plan.forms
                else None,
                overlay=heatmap.encode(
                    heatmap.overlay(canvas, intensity, plan.opacity), plan.encoding
                )
                if canvas is not None
                else None,
                against=against,
                explained=_explained(plan.cam, values, logits, class_id, against),
            )
        )
    return tuple(cams)


def _explained(
    cam: CamOutput,
    values: NDArray[np.float32],
    logits: NDArray[np.float32],
    class_id: int,
    against: int | None,
) -> float | None:
    """Return the share of a logit, or of the difference of two, that a map accounts for.

    Where the map is complete that is 1 less what is missing from the logit, over the sizes
    of the two parts that add up to it. HiResCAM weighs activations by the gradient: where it
    is not complete, the rest of the logit is what the network adds by itself, and the share
    is that of the map in the two. None for maps of other methods.
    """
    logit, constant = float(logits[class_id]), 0.0
    if against is not None:
        logit -= float(logits[against])
    complete = cam.completeness
    if complete is None and cam.method != "hirescam":
        return None
    part = float(values.mean() if complete and complete.by == "mean" else values.sum())
    if complete is not None:
        constant = complete.constants[class_id]
        constant -= 0.0 if against is None else complete.constants[against]
    missing = abs(logit - part - constant)
    whole = abs(part) + (abs(constant) if complete else missing)
    return max(0.0, 1.0 - missing / whole) if whole else None


def _against_itself(class_id: int) -> InvalidRequestError:
    named = f"class {class_id}" if class_id >= 0 else f"class of rank {-class_id}"
    return InvalidRequestError(
        "AGAINST_ITSELF",
        f"the {named} is explained against itself; against must be another class",
        field="cam.against",
        metadata={"class_id": class_id},
    )


def select(plan: FeatureMapPlan, values: NDArray[np.float32]) -> FeatureMap:
    """Return a plan's channels of a layer's activations, float32 [channels, height, width]."""
    return FeatureMap(
        layer=plan.layer,
        channels=plan.channels,
        values=values if plan.whole else values[list(plan.channels)],
    )


def _method(name: str, manifest: Manifest, *, linear: bool) -> CamOutput:
    if name == OCCLUSION.method:
        return OCCLUSION
    for cam in manifest.cams:
        if name == cam.method and linear and not (cam.linear or cam.positive_of):
            methods = listing(each.method for each in manifest.cams if each.linear)
            raise InvalidRequestError(
                "AGAINST_NOT_LINEAR",
                f"{name} is not linear in the logit, so that the map of a difference of two logits "
                f"is not a difference of its maps; with against there are {methods}",
                field="cam.method",
                metadata={"method": name},
            )
        if name == cam.method or (not name and (cam.linear or not linear)):
            return cam
    methods = listing([*(cam.method for cam in manifest.cams), OCCLUSION.method])
    raise InvalidRequestError(
        "CAM_METHOD_NOT_FOUND",
        f"no CAM method {quote(name)}; there are {methods}",
        field="cam.method",
        metadata={"method": clip(name)},
    )


def _check_check(request: CamRequest, classes: int, cam: CamOutput) -> None:
    if not LEAST_COPIES <= request.check <= MOST_COPIES:
        raise _out_of_range("CHECK", "cam.check", request.check, LEAST_COPIES, MOST_COPIES)
    for other, why in (
        (classes > 1, f"one map is tried at a time, and {classes} classes are explained"),
        (request.against is not None, "a map of a difference of two logits is not tried"),
        (cam is OCCLUSION, "a map by occlusion is a trial by itself"),
    ):
        if other:
            raise InvalidRequestError("CHECK_IMPOSSIBLE", f"cam.check: {why}", field="cam.check")


def _check_cam(
    request: CamRequest, top: int, manifest: Manifest, limits: ExplanationLimits
) -> None:
    for index, class_id in enumerate(request.class_ids):
        if not 0 <= class_id < manifest.classes:
            raise _out_of_range(
                "CLASS_ID", f"cam.class_ids[{index}]", class_id, 0, manifest.classes - 1
            )
    if not 0 <= top <= manifest.ranks:
        raise _out_of_range("CAM_TOP", "cam.top", top, 0, manifest.ranks)
    if request.against is not None and not -manifest.ranks <= request.against < manifest.classes:
        raise _out_of_range(
            "AGAINST", "cam.against", request.against, -manifest.ranks, manifest.classes - 1
        )
    classes = top + len(request.class_ids)
    if classes == 0:
        raise InvalidRequestError(
            "CAM_WITHOUT_CLASS",
            "maps are requested for no class: top is 0 and class_ids is empty",
            field="cam.top",
            metadata={"minimum": 1},
        )
    classes += request.against is not None
    if classes > limits.max_cam_classes:
        raise InvalidRequestError(
            "TOO_MANY_CAM_CLASSES",
            f"{classes} classes to explain; the limit is {limits.max_cam_classes}",
            field="cam.class_ids" if request.class_ids else "cam.top",
            metadata={"limit": limits.max_cam_classes},
        )
    for name, side in (("width", request.width), ("height", request.height)):
        if not 0 <= side <= limits.max_picture_side:
            raise _out_of_range("PICTURE_SIDE", f"cam.{name}", side, 0, limits.max_picture_side)
    if not 0.0 <= request.opacity <= 1.0:
        raise _out_of_range("OPACITY", "cam.opacity", request.opacity, 0, 1)


def _out_of_range(
    name: str, field: str, value: float, minimum: int, maximum: int
) -> InvalidRequestError:
    return InvalidRequestError(
        f"{name}_OUT_OF_RANGE",
        f"{field} is {value}; the limit is {minimum} to {maximum}",
        field=field,
        metadata={"minimum": minimum, "limit": maximum},
    )
