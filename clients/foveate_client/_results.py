"""The results of a classification, as frozen values."""

# ruff: noqa: PLC0415 - predictions need neither numpy nor Pillow; maps do

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

from foveate.v1 import classifier_service_pb2 as service
from foveate.v1 import explanation_pb2 as explanation
from foveate_client._images import ImageInput, open_reduced
from foveate_client._models import DEFAULT_SCORES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A class and its score.

    What `score` is, `Classification.scores` says: with "softmax" the probability
    of the class among all, from 0 to 1; with "sigmoid" that of the label by
    itself, from 0 to 1; with "none" the logit. `logit` is the network's output.
    `confidence` is how often an answer with this score is right; None where it was
    not asked for, or is not known.
    """

    class_id: int
    label: str
    score: float
    logit: float
    confidence: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How far an answer can be believed.

    `prediction_set` are class ids, the best first: of pictures like those of the
    calibration, a share `coverage` has its right class among them. `ood_percentile`,
    from 0 to 100, is the share of those pictures that were less unusual than this one.
    `abstained` is whether the model abstains, by its policy. `set_method` is "lac" or
    "raps".
    """

    coverage: float
    prediction_set: tuple[int, ...]
    ood_percentile: float
    abstained: bool
    set_method: str


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of a picture that the classifier saw, in pixels of the upright picture.

    It goes beyond the picture where the input has a border.
    """

    source_width: int
    source_height: int
    left: float
    top: float
    width: float
    height: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The left, top, width and height of the part."""
        return self.left, self.top, self.width, self.height


@dataclass(frozen=True, kw_only=True)
class MapCheck:
    """How the score changes for one picture when parts of it are hidden by a map.

    `drop` is how far the class's score fell on average when the pixels where the map is
    highest were hidden, `random_drop` when as many were hidden anywhere; of a model
    whose scores are "none" it is the logit. `copies` were tried.
    """

    drop: float
    random_drop: float
    copies: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Heatmap:
    """A class activation map.

    `array` is float32 [height, width], read-only, with the values exactly as
    the graph computed them, from `minimum` to `maximum`; `layer` is where its
    activations come from, and `view` the part of the picture that it covers.
    `against` is the class whose logit was subtracted, None where there is none.
    `explained` is the share of the logit, or of the difference of two, that the map
    accounts for, from 0 to 1, None where the method does not give it. `check` is None
    unless it was requested.
    """

    class_id: int
    label: str
    method: str
    layer: str
    array: npt.NDArray[np.float32]
    minimum: float
    maximum: float
    view: View
    against: int | None = None
    explained: float | None = None
    check: MapCheck | None = None

    @property
    def has_evidence(self) -> bool:
        """Whether a value of the map is above 0."""
        return self.maximum > 0

    @property
    def peak(self) -> tuple[float, float]:
        """The centre of the largest cell: x and y in pixels of the upright picture."""
        rows, columns = self.array.shape
        row, column = divmod(int(self.array.argmax()), columns)
        return (
            self.view.left + (column + 0.5) / columns * self.view.width,
            self.view.top + (row + 0.5) / rows * self.view.height,
        )

    def picture(self) -> Image.Image:
        """Return the positive part of the map in colour, of the size of the part seen."""
        from PIL import Image

        from foveate_client import _drawing

        size = max(1, round(self.view.width)), max(1, round(self.view.height))
        shares = _drawing.resample(_drawing.evidence(self.array), size, (0, 0, *size))
        return Image.fromarray(_drawing.turbo(shares))

    def overlay(
        self, image: ImageInput, *, opacity: float = 0.7, largest: int | None = None
    ) -> Image.Image:
        """Return the original picture with the positive part of the map laid over what was seen.

        `image` is the picture that was classified, whole and of its own size;
        `opacity` is the share of the colour where the map is largest. A picture whose
        longer side has more than `largest` pixels is returned reduced. Raises
        ImageError where the picture cannot be read and ValueError where it has
        another size.
        """
        from foveate_client import _drawing

        original, size = open_reduced(image, largest)
        expected = self.view.source_width, self.view.source_height
        if size != expected:
            raise ValueError(
                f"the map belongs to a picture of {expected[0]} x {expected[1]} pixels, "
                f"not {size[0]} x {size[1]}"
            )
        across, down = original.width / size[0], original.height / size[1]
        left, top, width, height = self.view.box
        box = left * across, top * down, width * across, height * down
        return _drawing.overlay(original, self.array, box, opacity)

    def _repr_png_(self) -> bytes:
        from foveate_client import _notebook

        return _notebook.png(self.picture())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the raw values where `path` ends in .npy, and else the coloured picture."""
        if Path(path).suffix == ".npy":
            import numpy as np

            np.save(path, self.array)
        else:
            self.picture().save(path)


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureMap:
    """The activations of one layer.

    `array` is float32 [channels, height, width], read-only; `channels` are the
    numbers of its planes in the layer.
    """

    layer: str
    channels: tuple[int, ...]
    array: npt.NDArray[np.float32]
    minimum: float
    maximum: float

    def contact_sheet(self) -> Image.Image:
        """Return a labelled grid of the channels, each coloured from its own least to its most."""
        from foveate_client import _drawing

        count, height, width = self.array.shape
        noun = "channel" if count == 1 else "channels"
        return _drawing.contact_sheet(
            self.array, self.channels, f"{self.layer}: {count} {noun} of {height} x {width}"
        )

    def _repr_png_(self) -> bytes:
        from foveate_client import _notebook

        return _notebook.png(self.contact_sheet())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the raw values where `path` ends in .npy, and else the contact sheet."""
        if Path(path).suffix == ".npy":
            import numpy as np

            np.save(path, self.array)
        else:
            self.contact_sheet().save(path)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The time of each stage of a request in the server, and the engine that ran it.

    `cached` is whether the answer is that of an earlier, identical request;
    the times of the stages are then zero.
    """

    decode: timedelta
    queue: timedelta
    infer: timedelta
    encode: timedelta
    total: timedelta
    batch_size: int
    backend: str
    device: str
    variant: str
    cached: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Classification:
    """The classification of one picture: its best classes, best first, and their explanations.

    `scores` says what the predictions' scores are: "softmax", "sigmoid" or "none".
    `warnings` are sentences, such as that a colour picture was converted to grey.
    """

    model: str
    version: str
    predictions: tuple[Prediction, ...]
    cams: tuple[Heatmap, ...]
    feature_maps: tuple[FeatureMap, ...]
    view: View
    timing: Timing | None
    scores: str = DEFAULT_SCORES
    trust: Trust | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_message(cls, message: service.ClassifyResponse) -> Self:
        """Read an answer of the service."""
        view = _view(message.view)
        return cls(
            model=message.model,
            version=message.version,
            predictions=tuple(
                Prediction(
                    class_id=p.class_id,
                    label=p.label,
                    score=p.score,
                    logit=p.logit,
                    confidence=p.confidence if p.HasField("confidence") else None,
                )
                for p in message.predictions
            ),
            cams=tuple(_heatmap(cam, view) for cam in message.cams),
            feature_maps=tuple(_feature_map(features) for features in message.feature_maps),
            view=view,
            timing=_timing(message.timing) if message.HasField("timing") else None,
            scores=message.scores or DEFAULT_SCORES,
            trust=_trust(message.trust) if message.HasField("trust") else None,
            warnings=tuple(message.warnings),
        )

    def _repr_html_(self) -> str:
        from foveate_client import _notebook

        return _notebook.classification(self)


def _trust(trust: service.Trust) -> Trust:
    return Trust(
        coverage=trust.coverage,
        prediction_set=tuple(trust.prediction_set),
        ood_percentile=trust.ood_percentile,
        abstained=trust.abstained,
        set_method="raps" if trust.set_method == service.SET_METHOD_RAPS else "lac",
    )


def _view(view: explanation.View) -> View:
    return View(
        source_width=view.source_width,
        source_height=view.source_height,
        left=view.left,
        top=view.top,
        width=view.width,
        height=view.height,
    )


def _heatmap(cam: explanation.Cam, view: View) -> Heatmap:
    return Heatmap(
        class_id=cam.class_id,
        label=cam.label,
        method=cam.method,
        layer=cam.layer,
        array=_floats(cam.values, cam.height, cam.width),
        minimum=cam.minimum,
        maximum=cam.maximum,
        view=view,
        against=cam.against if cam.HasField("against") else None,
        explained=cam.explained if cam.HasField("explained") else None,
        check=_check(cam.check) if cam.HasField("check") else None,
    )


def _check(check: explanation.MapCheck) -> MapCheck:
    return MapCheck(drop=check.drop, random_drop=check.random_drop, copies=check.copies)


def _feature_map(features: explanation.FeatureMap) -> FeatureMap:
    return FeatureMap(
        layer=features.layer,
        channels=tuple(features.channels),
        array=_floats(features.values, len(features.channels), features.height, features.width),
        minimum=features.minimum,
        maximum=features.maximum,
    )


def _floats(values: bytes, *shape: int) -> npt.NDArray[np.float32]:
    import numpy as np

    array = np.frombuffer(values, dtype="<f4").reshape(shape)
    # A view of bytes, hence read-only; on a big-endian machine the copy must be made so.
    native = array.astype(np.float32, copy=False)
    native.flags.writeable = False
    return native


def _timing(timing: service.Timing) -> Timing:
    return Timing(
        decode=timing.decode.ToTimedelta(),
        queue=timing.queue.ToTimedelta(),
        infer=timing.infer.ToTimedelta(),
        encode=timing.encode.ToTimedelta(),
        total=timing.total.ToTimedelta(),
        batch_size=timing.batch_size,
        backend=timing.backend,
        device=timing.device,
        variant=timing.variant,
        cached=timing.cached,
    )
