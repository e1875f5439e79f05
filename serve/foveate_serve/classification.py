"""The engine's types of a request and of its answer."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import Scores
from foveate_runtime.bundle.trust import SetMethod
from foveate_runtime.imaging.heatmap import Encoding
from foveate_runtime.imaging.transform import View

CamForm = Literal["raw", "heatmap", "overlay"]

ANSWER_BYTES = 1024
"""The bytes of an answer without its predictions, pictures and arrays: measured, rounded up."""

PREDICTION_BYTES = 160
"""The bytes of a prediction without its label, which belongs to the model."""

CLASS_ID_BYTES = 40
"""The bytes of a class id in a tuple."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawImage:
    """A picture of the classifier's size: height x width x channels bytes, row by row."""

    height: int
    width: int
    channels: int
    data: bytes | memoryview


DEFAULT_OPACITY = 0.7


@dataclass(frozen=True, kw_only=True, slots=True)
class CamRequest:
    """A request for class activation maps.

    `method` empty takes the bundle's first. `top` explains that many of the
    best classes, before those of `class_ids`; None means one where `class_ids`
    is empty and none otherwise. `against` is a class, or below 0 a rank, whose logit
    is taken off that of each class explained. `check` is on how many masked copies the map
    is tried, 0 for none. Pictures are `width` x `height` pixels, 0 meaning the input's
    size, and `opacity` is the share of the map's colour in an overlay where the map is
    largest.
    """

    method: str = ""
    class_ids: tuple[int, ...] = ()
    top: int | None = None
    against: int | None = None
    check: int = 0
    forms: frozenset[CamForm] = frozenset({"raw"})
    width: int = 0
    height: int = 0
    encoding: Encoding = "png"
    opacity: float = DEFAULT_OPACITY


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureMapRequest:
    """A request for the feature map of a layer: its `channels`, or all where none are given."""

    layer: str
    channels: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustRequest:
    """A request for the trust in the answer; `coverage` None means the lowest calibrated."""

    coverage: float | None = None
    set_method: SetMethod = "lac"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request to classify one picture, which is an encoded file or a RawImage.

    `model` empty means the only one, `version` empty the model's default, and
    `top_k` None five classes, or all where there are fewer. Only classes whose
    score is at least `threshold` are wanted; with one, `top_k` None means all.
    `priority` counts from 1, the highest; 0 is the model's default.
    """

    image: bytes | RawImage
    model: str = ""
    version: str = ""
    top_k: int | None = None
    threshold: float | None = None
    cam: CamRequest | None = None
    feature_maps: tuple[FeatureMapRequest, ...] = ()
    trust: TrustRequest | None = None
    priority: int = 0

    @property
    def images(self) -> tuple[bytes | RawImage]:
        """The picture, as the only one of those of the request."""
        return (self.image,)


class Prediction(NamedTuple):
    """A class, its score, of the kind that the manifest names, and its logit.

    `confidence` is how often such a score is right, None where that is not known.
    """

    class_id: int
    label: str
    score: float
    logit: float
    confidence: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trust:
    """The trust in an answer; see `foveate_runtime.trust.answer.Assessment`."""

    coverage: float
    prediction_set: tuple[int, ...]
    ood_percentile: float
    abstained: bool
    set_method: SetMethod


class MapCheck(NamedTuple):
    """What became of a class when parts of the picture were hidden.

    `drop` is how far its score, or its logit where there are no scores, fell on average
    without what the map shows, `random_drop` without as much of anything.
    """

    drop: float
    random_drop: float
    copies: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cam:
    """The map of one class.

    `height` and `width` are the raw map's, in cells. `values`, float32 [height,
    width], and the encoded pictures `heatmap` and `overlay` are None unless
    asked for. `against` is the class whose logit was taken off, `explained` the share
    of the logit, or of the difference, that the map accounts for; None where there is none.
    `check` is what the map is worth, None where that was not tried.
    """

    class_id: int
    label: str
    method: str
    layer: str
    height: int
    width: int
    minimum: float
    maximum: float
    values: NDArray[np.float32] | None
    heatmap: bytes | None
    overlay: bytes | None
    against: int | None = None
    explained: float | None = None
    check: MapCheck | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureMap:
    """Channels of a layer's activations: `values` is float32 [channels, height, width]."""

    layer: str
    channels: tuple[int, ...]
    values: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """The seconds of each stage, and the batch and engine that did the work.

    `batch` is the number of the batch, counted in this process. `cached` marks an
    answer from the cache: no batch ran, and the stages took no time.
    """

    decode: float
    queue: float
    infer: float
    encode: float
    total: float
    batch: int
    batch_size: int
    backend: str
    device: str
    variant: str
    cached: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The part that all answers share: the model, its version, and the times."""

    model: str
    version: str
    timing: Timing

    @property
    def size(self) -> int:
        """How many bytes of memory the answer takes, roughly."""
        return ANSWER_BYTES

    def for_cache(self) -> Self:
        """Return the answer for the cache: without times, and with no memory but its own."""
        timing = Timing(
            decode=0.0,
            queue=0.0,
            infer=0.0,
            encode=0.0,
            total=0.0,
            batch=0,
            batch_size=0,
            backend=self.timing.backend,
            device=self.timing.device,
            variant=self.timing.variant,
            cached=True,
        )
        return replace(self, timing=timing)

    def from_cache(self, seconds: float) -> Self:
        """Return a cached answer as the answer to a request that took `seconds`."""
        return replace(self, timing=replace(self.timing, total=seconds))


@dataclass(frozen=True, kw_only=True, slots=True)
class Result(Answer):
    """The classification of one picture: predictions best first, maps in the order asked for.

    `scores` says how the scores follow from the logits.
    """

    scores: Scores
    predictions: tuple[Prediction, ...]
    cams: tuple[Cam, ...]
    feature_maps: tuple[FeatureMap, ...]
    view: View
    trust: Trust | None = None

    @property
    def size(self) -> int:
        """How many bytes of memory the answer takes, roughly."""
        return (
            ANSWER_BYTES
            + PREDICTION_BYTES * len(self.predictions)
            + (0 if self.trust is None else CLASS_ID_BYTES * len(self.trust.prediction_set))
            + sum(
                len(cam.heatmap or b"") + len(cam.overlay or b"") + _bytes(cam.values)
                for cam in self.cams
            )
            + sum(_bytes(features.values) for features in self.feature_maps)
        )

    def for_cache(self) -> Self:
        """Return the answer for the cache: without times, and with no memory but its own."""
        # A map is a view of its batch's array and would keep all of it in memory.
        return replace(
            super(Result, self).for_cache(),
            cams=tuple(
                cam if cam.values is None else replace(cam, values=cam.values.copy())
                for cam in self.cams
            ),
            feature_maps=tuple(
                replace(features, values=features.values.copy()) for features in self.feature_maps
            ),
        )


def _bytes(values: NDArray[np.float32] | None) -> int:
    return 0 if values is None else values.nbytes
