"""The manifest of a bundle: everything about it that is not a weight.

A bundle is a folder `<repository>/<model>/<version>/` that holds
`manifest.json`, the files that it names, and nothing executable.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from foveate_runtime.bundle.trust import Policy, Trust

MANIFEST_FILE = "manifest.json"
LABELS_FILE = "labels.txt"
SIGNATURE_FILE = "manifest.sig"
"""Beside the manifest, where the bundle is signed: `foveate_runtime.bundle.signing`."""
SIGNATURE_BYTES = 64

IMAGE_INPUT = "image"
"""The graph input: uint8 [N, height, width, channels]."""
CLASS_IDS_INPUT = "class_ids"
"""The graph input: int64 [N, K]; -1 means the best class, -2 the second, and so on."""
LOGITS_OUTPUT = "logits"
"""The graph output: float32 [N, classes]."""
MAX_INPUT_BYTES = 1 << 28
"""The most bytes of a graph's input picture, and of the picture that it is cut from."""
MOST_RANKS = 3840
"""The ranks that `class_ids` may have: the most that TensorRT sorts."""
CAM_PREFIX = "cam."
"""Graph outputs `cam.<method>`: float32 [N, K, height, width], raw values."""
LINEAR_METHODS = ("cam", "hirescam")
"""The methods that are linear in the logit, or in its gradient."""
FEATURES_PREFIX = "features."
"""Graph outputs `features.<layer>`: float32 [N, channels, height, width]."""

Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
Share = Annotated[float, Field(ge=0, le=1)]
Layout = Annotated[str, Field(pattern=r"^(nchw|nhwc|tokens\(\d+, \d+, \d+\))$")]
"""How a network's activation is laid out: [N, C, h, w], [N, h, w, C], or [N, T, C] whose
tokens are rows, columns and the tokens before them. The graph's outputs are [N, C, h, w]."""

Scores = Literal["softmax", "sigmoid", "none"]
"""What makes scores of the logits: probabilities of classes that exclude each other, the
probability of each label by itself, or nothing: the scores are the logits."""


Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Fit = Literal["crop", "squash", "pad"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSpec(_Model):
    """How a picture becomes the graph's input.

    A picture of `height` x `width` pixels is taken as it is. Any other is resized
    with `interpolation` (antialiased) by the rule of `fit`, and its centre of `height` x
    `width` pixels is taken:

    - `crop`: its shorter side to `resize`, or to more where it would not cover the input.
    - `squash`: both sides to those of `frame`; the aspect ratio is not kept.
    - `pad`: to fit into `frame`; what the picture leaves free of the input has the
      colour `fill`, or `mean` where that is empty.

    The colours become `channels`. `mean` and `std` are for people to read: the graph
    normalises by itself. They and `fill` are on the scale from 0 to 1.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    height: Positive
    width: Positive
    channels: Positive
    resize: Positive
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    fit: Fit = "crop"
    fill: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        for name in ("mean", "std", "fill"):
            count = len(getattr(self, name))
            if count != self.channels and (count or name != "fill"):
                raise ValueError(f"{name} has {count} values for {self.channels} channels")
        for name, size in (
            ("height, width and channels", self.height * self.width * self.channels),
            ("resize", math.prod(self.frame) * self.channels),
        ):
            if size > MAX_INPUT_BYTES:
                raise ValueError(
                    f"{name} make a picture of {size:,} bytes, above the limit of "
                    f"{MAX_INPUT_BYTES:,}"
                )
        if fault := off_scale(self.mean, self.std, self.fill):
            raise ValueError(fault)
        if self.fill and self.fit != "pad":
            raise ValueError(f"fill is the colour that pad adds, and fit is {self.fit!r}")
        shorter = min(self.height, self.width)
        if self.resize < shorter:
            raise ValueError(f"resize {self.resize} is below {shorter}, the input's shorter side")
        return self

    def changed(self, **fields: object) -> "InputSpec":
        """Return it with other values; raises ValidationError where they disagree."""
        return InputSpec.model_validate(self.model_dump() | fields)

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width of the input, enlarged until its shorter side is `resize`."""
        shorter = min(self.height, self.width)
        return (
            round(self.height * self.resize / shorter),
            round(self.width * self.resize / shorter),
        )

    @property
    def border(self) -> tuple[int, ...]:
        """The colour that pad adds, in levels from 0 to 255."""
        return tuple(round(255 * value) for value in self.fill or self.mean)


def first_fault(error: ValidationError) -> str:
    """Return the first error of a document in one line, with its field."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the document"
    return f"{where}: {first['msg']}"


def faults(error: ValidationError) -> str:
    """Return all errors of a model in one line, each with its field."""
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: ".removeprefix(": ")
        + fault["msg"].removeprefix("Value error, ")
        for fault in error.errors()
    )


def off_scale(mean: Sequence[float], std: Sequence[float], fill: Sequence[float]) -> str:
    """Return which of the values are not on the scale from 0 to 1, and the probable scale."""
    faults = []
    for name, values in (("mean", mean), ("std", std), ("fill", fill)):
        largest = max(map(abs, values), default=0)
        scale = 1 if largest <= 1 else 255 if largest <= 255 else 65535
        if name == "std" and largest == 1 < max(mean):
            scale = 255  # not scaled, beside a mean on the scale to 255
        meant = [float(f"{abs(value) / scale:.4g}") for value in values]
        if scale > 1:
            faults.append(
                f"{name} {list(values)} is on the scale from 0 to {scale}; "
                f"on the scale from 0 to 1 it is {meant}"
            )
        elif min(values, default=0) < 0:
            faults.append(f"{name} {list(values)} is below 0; {meant} was probably meant")
    return "; ".join(faults)


class Completeness(_Model):
    """How a map adds up to the logit: its mean or its sum, plus its class's constant."""

    by: Literal["mean", "sum"]
    constants: tuple[float, ...]


class CamOutput(_Model):
    """One class activation map of the graph: the output `cam.<method>`.

    `layout` is that of the layer inside the network. `completeness` is None where the
    map does not add up to the logit, or where that was not measured; `positive_of` is
    the method whose positive part it is, where that is so.
    """

    method: Name
    layer: str
    height: Positive
    width: Positive
    layout: Layout = "nchw"
    completeness: Completeness | None = None
    positive_of: Name | None = None

    @property
    def linear(self) -> bool:
        """Whether the map of a difference of two logits is the difference of their maps."""
        # Grad-CAM and LayerCAM cut off what is negative, and so do maps of attention.
        return self.method in LINEAR_METHODS


class FeatureOutput(_Model):
    """One feature map of the graph: the output `features.<layer>`.

    `layout` is that of the layer inside the network.
    """

    layer: str
    channels: Positive
    height: Positive
    width: Positive
    layout: Layout = "nchw"


class Parity(_Model):
    """How far a variant lies from the classifier in torch, measured at export.

    `logits_max_abs` is the largest absolute difference. `cams` (by method,
    against autograd) and `features` (by layer, against torch) hold the largest
    absolute difference divided by the largest absolute value, of the worst map.
    `rms` holds, by graph output, the root mean square of the difference divided
    by that of the values in torch, over all pictures.
    """

    images: Positive
    data: str
    logits_max_abs: Annotated[float, Field(ge=0)]
    top1_agreement: Share
    cams: dict[str, Annotated[float, Field(ge=0)]]
    features: dict[str, Annotated[float, Field(ge=0)]]
    rms: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)


class Tolerances(_Model):
    """The largest differences from torch that are accepted of a variant.

    `measure` is the measure of a difference: `largest`, the largest difference over
    the largest value, of the worst map; or `rms`, the root mean square of the
    difference over that of the values.
    """

    measure: Literal["largest", "rms"]
    logits: Annotated[float, Field(gt=0)]
    cams: Annotated[float, Field(gt=0)]
    features: Annotated[float, Field(gt=0)]

    def limit(self, output: str) -> float:
        """Return what is accepted of the graph's output `output`."""
        if output.startswith(CAM_PREFIX):
            return self.cams
        return self.features if output.startswith(FEATURES_PREFIX) else self.logits


class Accuracy(_Model):
    """What a variant scores on labelled pictures."""

    data: str
    images: Positive
    top1: Share
    top5: Share


class Quantisation(_Model):
    """How an int8 variant was made, and how it compares with fp32 on the calibration pictures.

    `digest` is `sha256:<hex>` of the pictures as the classifier gets them.
    With `pairs_fit` the sum of the products of two adjacent weights fits 16 bits, so
    that processors without VNNI add them exactly. `float_layers` are the nodes of
    the graph left in float. `agreement` is the share of the pictures with the same
    best class, `sqnr` the signal-to-noise ratio of the logits in decibels.
    """

    scheme: Literal["asymmetric", "symmetric"]
    data: str
    images: Positive
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    pairs_fit: bool = False
    float_layers: tuple[str, ...]
    agreement: Share
    sqnr: float


class VariantEntry(_Model):
    """One precision of the bundle."""

    name: Name
    file: str
    parity: Parity
    tolerances: Tolerances | None = None
    accuracy: Accuracy | None = None
    quantisation: Quantisation | None = None
    trust: Trust | None = None


class Mean(_Model):
    """A mean over pictures and its standard error."""

    mean: float
    error: Annotated[float, Field(ge=0)]


class MapWorth(_Model):
    """How faithful a map is; see `foveate_runtime.evaluation.faithfulness`.

    `focus` is None where the pictures were of fewer than four classes.
    """

    insertion: Mean
    deletion: Mean
    average_drop: Mean
    increase: Share
    focus: Mean | None = None


class Randomisation(_Model):
    """How similar maps are to those of the trained weights when the last layers have random ones.

    `layers` are the numbers of these layers, step by step, `of` how many there are. `maps` has,
    by method, the mean rank correlation at each step, None where maps have no order.
    """

    of: Positive
    layers: Annotated[tuple[Positive, ...], Field(min_length=1)]
    maps: dict[str, tuple[Mean | None, ...]]

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        for name, means in self.maps.items():
            if len(means) != len(self.layers):
                raise ValueError(f"{name} has {len(means)} means for {len(self.layers)} steps")
        return self


class Faithfulness(_Model):
    """What the maps are worth, by method, beside controls that do not depend on the picture.

    `randomisation` is None where the variant is quantised or has no weights in float32.
    """

    data: str
    images: Positive
    variant: Name
    steps: Positive
    maps: dict[str, MapWorth]
    randomisation: Randomisation | None = None


class GoldenEntry(_Model):
    """Pictures with torch's answers to them: `foveate_runtime.bundle.golden` reads the file."""

    file: str
    images: Positive
    data: str


class FileEntry(_Model):
    """A file of the bundle."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Manifest(_Model):
    """The contents of `manifest.json`."""

    format: Literal["foveate.bundle/1"] = "foveate.bundle/1"
    name: Name
    version: Positive
    classifier: str
    arguments: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    created: datetime
    versions: dict[str, str] = Field(description="the packages that made the bundle")
    parameters: Positive
    classes: Positive
    opset: Positive
    input: InputSpec
    scores: Scores = "softmax"
    cams: tuple[CamOutput, ...]
    features: tuple[FeatureOutput, ...]
    variants: Annotated[tuple[VariantEntry, ...], Field(min_length=1)]
    golden: GoldenEntry | None = None
    faithfulness: Faithfulness | None = None
    policy: Policy = Field(default_factory=Policy, description="when the model abstains")
    files: dict[str, FileEntry] = Field(
        description="every file of the bundle but this one, by its path"
    )
    assumptions: dict[str, str] = Field(
        default_factory=dict, description="what the export found or assumed, by the field it is of"
    )
    metadata: dict[str, str] = Field(default_factory=dict, description="what training noted")

    @model_validator(mode="after")
    def _files_are_listed(self) -> Self:
        for path in self.files:
            parts = path.split("/")
            if path.startswith("/") or "\\" in path or any(p in ("", ".", "..") for p in parts):
                raise ValueError(f"files: {path!r} leaves the bundle")
            if not path.isprintable():
                raise ValueError(f"files: {path!r} has characters that cannot be printed")
        golden = [self.golden.file] if self.golden else []
        for path in (LABELS_FILE, *(v.file for v in self.variants), *golden):
            if path not in self.files:
                raise ValueError(f"files: {path!r} is used and not listed")
        for kind, names in (
            ("variants", [v.name for v in self.variants]),
            ("cams", [c.method for c in self.cams]),
            ("features", [f.layer for f in self.features]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{kind}: a name stands twice in {names}")
        for cam in self.cams:
            if cam.completeness and len(cam.completeness.constants) != self.classes:
                raise ValueError(
                    f"cams: {cam.method} has {len(cam.completeness.constants)} constants for "
                    f"{self.classes} classes"
                )
        for variant in self.variants:
            many = len(variant.trust.temperatures) if variant.trust else 0
            if many > 1 and many != self.classes:
                raise ValueError(
                    f"variants: {variant.name} has {many} temperatures for {self.classes} classes"
                )
        return self

    @property
    def ranks(self) -> int:
        """How many of the best classes can be explained by rank."""
        return min(self.classes, MOST_RANKS)

    def variant(self, name: str) -> VariantEntry:
        """Return the variant called `name`; raises KeyError."""
        for entry in self.variants:
            if entry.name == name:
                return entry
        raise KeyError(name)
