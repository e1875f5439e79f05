"""The request of a run for each picture, and the row that is made of an answer."""

import errno
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from foveate_client._exceptions import (
    CallError,
    FoveateError,
    ImageError,
    TooMuchMemoryError,
)
from foveate_client._models import Model
from foveate_client._options import Cam, ClassifyOptions, TrustRequest
from foveate_client._results import Classification, Heatmap
from foveate_client.batch.journal import Failure, Row, RowTrust
from foveate_client.batch.sources import Item
from foveate_client.batch.stream import Task, may_pass
from foveate_client.batch.tables import Vector
from foveate_client.report.tiles import Map, Tile, draw, pack

LAST = "last"
"""Stands for the last layer that the model lists."""

LARGEST_OVERLAY = 2048
"""Pixels of the longer side of an overlay at most; a larger picture is drawn reduced."""

_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.ENOTDIR, errno.EISDIR)
"""Errors of a file system that refuses one name, and would take others."""

PROBABILITIES = "probabilities"
"""The column of every class's score."""

_EVALUATED = 5
"""Classes that top-5 accuracy needs, however many are written."""


class PlanError(FoveateError):
    """The model does not have what was requested."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The request of a run for each picture.

    Of the `top_k` best classes those are written whose score is at least
    `threshold`; None means any. `embeddings` and `feature_maps` are layers, of
    which LAST stands for the last; `cam_folder` is where overlays of the best
    class's map are written, None meaning none, and `cam_method` empty takes the
    model's first; `probabilities` writes the score of every class. With `tiles` each
    row contains the picture of a report, with maps where `tile_maps` is set.
    Raises PlanError where the model has too few classes, no such scores, or not such a
    layer or method.
    """

    model: Model
    top_k: int = 5
    threshold: float | None = None
    embeddings: tuple[str, ...] = ()
    feature_maps: tuple[str, ...] = ()
    cam_folder: Path | None = None
    cam_method: str = ""
    trust: TrustRequest | None = None
    probabilities: bool = False
    tiles: bool = False
    tile_maps: bool = False
    vectors: tuple[Vector, ...] = field(init=False)

    def __post_init__(self) -> None:
        classes = len(self.model.labels)
        if not 1 <= self.top_k <= classes:
            raise PlanError(
                f"--top-k is {self.top_k}; the limit is 1 to {classes}, the number of classes"
            )
        if self.threshold is not None and not self._can_reach(self.threshold):
            raise PlanError(
                f"--threshold is {self.threshold:g}; the limit is 0 to 1, as the model's scores "
                f"are ({self.model.scores})"
            )
        methods = [method.name for method in self.model.cam_methods]
        if self._explains and self.cam_method and self.cam_method not in methods:
            raise PlanError(
                f"the model has no CAM method {self.cam_method!r}; it has {', '.join(methods)}"
            )
        shapes = {x.name: (x.channels, x.height, x.width) for x in self.model.layers}
        for name, kind in (("embeddings", "--embeddings"), ("feature_maps", "--feature-maps")):
            layers = tuple(self._layer(layer, shapes, kind) for layer in getattr(self, name))
            object.__setattr__(self, name, layers)
        vectors = [
            *(Vector(name=f"embedding.{x}", shape=shapes[x][:1]) for x in self.embeddings),
            *(Vector(name=f"features.{x}", shape=shapes[x]) for x in self.feature_maps),
        ]
        if self.probabilities:
            if self.model.scores == "none":
                raise PlanError(
                    "--probabilities: the model's scores are its logits, and no probabilities"
                )
            vectors.append(Vector(name=PROBABILITIES, shape=(classes,)))
        object.__setattr__(self, "vectors", tuple(vectors))

    @staticmethod
    def _layer(name: str, shapes: dict[str, tuple[int, int, int]], option: str) -> str:
        if name in shapes:
            return name
        if name == LAST and shapes:
            return list(shapes)[-1]
        raise PlanError(
            f"{option}: the model has no layer {name!r}; it has {', '.join(shapes) or 'none'}"
        )

    def _can_reach(self, threshold: float) -> bool:
        return 0 <= threshold <= 1 or (self.model.scores == "none" and isfinite(threshold))

    @property
    def settings(self) -> dict[str, object]:
        """Return the settings that must be equal for a run to resume a journal."""
        return {
            "model": self.model.name,
            "version": self.model.version,
            "--top-k": self.top_k,
            "--threshold": self.threshold,
            "--embeddings": list(self.embeddings),
            "--feature-maps": list(self.feature_maps),
            "--cam": None if self.cam_folder is None else str(self.cam_folder),
            "--cam-method": self.cam_method,
            "--trust": None if self.trust is None else asdict(self.trust),
            # Null unless asked for, as in the journals of older versions.
            "--probabilities": self.probabilities or None,
            "--report": self.tiles or None,
            "variant": self.model.active_variant,
        }

    @property
    def options(self) -> ClassifyOptions:
        """Return the options of every call."""
        options = ClassifyOptions(
            model=self.model.name,
            # Stated, so that a version loaded meanwhile does not mix in.
            version=self.model.version,
            top_k=len(self.model.labels) if self.probabilities else self._most_kept,
            feature_maps=list(dict.fromkeys((*self.embeddings, *self.feature_maps))),
        )
        if self._explains:
            options["cam"] = Cam(method=self.cam_method)
        if self.trust is not None:
            options["trust"] = self.trust
        return options

    @property
    def _explains(self) -> bool:
        return self.cam_folder is not None or self.tile_maps

    @property
    def _most_kept(self) -> int:
        return min(max(self.top_k, _EVALUATED), len(self.model.labels))

    def explanation(self, class_id: int) -> ClassifyOptions:
        """Return the options of a call for the map of one class alone."""
        return ClassifyOptions(
            model=self.model.name,
            version=self.model.version,
            top_k=1,
            cam=Cam(method=self.cam_method, class_ids=[class_id]),
        )

    def outcome(
        self, task: Task, answer: Classification | FoveateError, right: Heatmap | None = None
    ) -> Row | Failure:
        """Draw the overlay where wanted, and return the outcome of an answer for the journal.

        `right` is the map of the right class, where that is another one than the best, for
        the report. Raises OSError where no overlay can be written.
        """
        if isinstance(answer, FoveateError):
            return _failure(task, answer)
        try:
            cam = self._draw(task.item, answer)
            tiles = self._tiles(task.item, answer, right) if self.tiles else ()
        except ImageError as error:
            return _failure(task, error)
        except ValueError:
            return _failure(task, ImageError("it was changed while it was classified"))
        except OSError as error:
            if error.errno not in _OF_THE_NAME:
                raise
            return _failure(task, ImageError(f"cannot write its overlay: {error.strerror}"))
        least = -inf if self.threshold is None else self.threshold
        kept = [
            prediction
            for rank, prediction in enumerate(answer.predictions[: self._most_kept])
            if rank < _EVALUATED or prediction.score >= least
        ]
        return Row(
            name=task.item.name,
            position=task.position,
            label=task.item.label,
            class_ids=np.array([x.class_id for x in kept], dtype=np.int32),
            scores=np.array([x.score for x in kept], dtype=np.float32),
            vectors=self._vectors(answer),
            cam=cam,
            trust=_trust(answer),
            tiles=pack(tiles),
        )

    def _vectors(self, answer: Classification) -> npt.NDArray[np.float32]:
        maps = {features.layer: features.array for features in answer.feature_maps}
        parts: list[npt.NDArray[Any]] = [
            *(maps[layer].mean(axis=(1, 2)) for layer in self.embeddings),
            *(maps[layer].ravel() for layer in self.feature_maps),
        ]
        if self.probabilities:
            scores = np.empty(len(self.model.labels), dtype=np.float32)
            scores[[x.class_id for x in answer.predictions]] = [x.score for x in answer.predictions]
            parts.append(scores)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    @staticmethod
    def _tiles(item: Item, answer: Classification, right: Heatmap | None) -> tuple[Tile, ...]:
        maps = [*answer.cams, *([right] if right is not None else [])]
        try:
            return draw(item.image, [Map(x.class_id, x.array) for x in maps], answer.view)
        except ImageError:
            # The server has read it. The answer counts, and the report has no picture of it.
            return ()

    def _draw(self, item: Item, answer: Classification) -> str | None:
        """Draw the overlay; return its file, or None where none is wanted or it takes too much."""
        if self.cam_folder is None:
            return None
        path = self.cam_folder / overlay_name(item.name)
        try:
            drawn = answer.cams[0].overlay(item.image, largest=LARGEST_OVERLAY)
        except TooMuchMemoryError:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(path, "JPEG", quality=90)
        return str(path)


def _trust(answer: Classification) -> RowTrust | None:
    if answer.trust is None:
        return None
    return RowTrust(
        confidence=answer.predictions[0].confidence,
        coverage=answer.trust.coverage,
        prediction_set=answer.trust.prediction_set,
        ood_percentile=answer.trust.ood_percentile,
        abstained=answer.trust.abstained,
    )


def overlay_name(name: str) -> Path:
    """Return where the overlay of the picture `name` lies below the overlays' folder."""
    path = PurePath(name.removeprefix("file://"))
    parts = ("_" if part == ".." else part for part in path.relative_to(path.anchor).parts)
    return Path(*parts).with_name(f"{path.name}.cam.jpg")


def _failure(task: Task, error: FoveateError) -> Failure:
    if isinstance(error, CallError):
        code, reason = error.code, error.reason
    else:
        code, reason = "INVALID_ARGUMENT", "IMAGE_UNREADABLE"
    return Failure(
        name=task.item.name,
        position=task.position,
        code=code,
        reason=reason,
        message=str(error),
        transient=may_pass(error),
    )
