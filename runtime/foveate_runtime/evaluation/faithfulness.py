"""How faithful maps are: what the classifier says when it sees only what a map shows.

For every picture the class that the classifier puts first is explained, by each method of
the bundle and by two controls that know nothing of it: noise of the maps' size, and a
Gaussian in the middle, where photographers put things. All pixels go through the runner
that serves; p(x) is the probability of the explained class for the pixels x.

Insertion and deletion (Petsiuk, Das and Saenko, RISE, BMVC 2018). Pixels are ranked by the
map, enlarged bilinearly. Deletion replaces them, the highest first, by the mean colour;
insertion starts with the picture blurred (11 x 11 Gaussian of standard deviation 5 pixels)
and puts them back. With p_i after a share i / n of the pixels, the area under the curve is
that of the trapezoids,

    AUC = 1 / n sum_{i = 1}^n (p_{i - 1} + p_i) / 2

of which a faithful map has a small one for deletion and a large one for insertion.

Average drop and increase (Chattopadhay et al., Grad-CAM++, WACV 2018). With m the map's
positive part over its maximum, enlarged bilinearly, as the server draws it, and b the mean
colour,

    average drop = 1 / N sum max(0, p(x) - p(b + m (x - b))) / p(x)

and the increase is the share of pictures where p grows. Small drops are good, but a map that
is bright everywhere has the smallest.

Focus (Arias-Duart et al., "Focus! Rating XAI Methods and Finding Biases", FUZZ-IEEE 2022).
Each picture and three of other classes are shrunk into the quarters of one; the focus is the
share of the positive part of the map of the picture's own class that lies in its quarter. A
map that knows nothing has a quarter.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate_runtime.backends.base import Runner
from foveate_runtime.bundle.manifest import (
    CAM_PREFIX,
    CLASS_IDS_INPUT,
    IMAGE_INPUT,
    LOGITS_OUTPUT,
    Faithfulness,
    InputSpec,
    MapWorth,
    Mean,
    Scores,
)
from foveate_runtime.bundle.scores import score
from foveate_runtime.evaluation.accuracy import prepared_batches
from foveate_runtime.evaluation.labelled import Labelled, LabelledError
from foveate_runtime.imaging.heatmap import intensity
from foveate_runtime.imaging.masking import ranking, replaced

STEPS = 12
"""How many parts the pixels are inserted and deleted in."""
BLUR_SIZE = 11
BLUR_SIGMA = 5.0
CENTRE_SIGMA = 0.25
"""Of a side."""
_LEAST = 2
"""Pictures, of which a standard error takes two."""

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]


def auc(curve: Floats) -> float:
    """Return the area under p_0 to p_n over the shares 0 to 1, by trapezoids."""
    return float((curve[:-1] + curve[1:]).mean() / 2)


def blurred(picture: Picture) -> Picture:
    """Blur uint8 [H, W, C] with the Gaussian of `BLUR_SIZE` and `BLUR_SIGMA`; edges repeat."""
    reach = BLUR_SIZE // 2
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / BLUR_SIGMA) ** 2)
    weights /= weights.sum()
    result = picture.astype(np.float64)
    for axis in (0, 1):
        padding = [(reach, reach) if axis == i else (0, 0) for i in range(3)]
        padded = np.pad(result, padding, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, BLUR_SIZE, axis=axis)
        result = windows @ weights
    return np.round(result).astype(np.uint8)


def revealed(picture: Picture, mean: Picture, values: Floats) -> Picture:
    """Return uint8 [H, W, C] where a map [h, w] is positive, fading into the mean colour [C]."""
    light = intensity(values, picture.shape[1], picture.shape[0])
    if light is None:
        return np.broadcast_to(mean, picture.shape)
    shown = light[..., None] / np.float32(255)
    return np.round(mean + shown * (picture - mean.astype(np.float32))).astype(np.uint8)


def controls(number: int, height: int, width: int) -> dict[str, Floats]:
    """Return the maps [height, width] that know nothing of photograph `number`."""
    noise = np.random.default_rng(number).random((height, width), dtype=np.float32)
    rows, columns = (
        np.exp(-0.5 * (((np.arange(size) + 0.5) / size - 0.5) / CENTRE_SIGMA) ** 2)
        for size in (height, width)
    )
    return {"random": noise, "centre Gaussian": np.outer(rows, columns).astype(np.float32)}


@dataclass(frozen=True, kw_only=True)
class _Marks:
    """What one map did for one picture."""

    insertion: float
    deletion: float
    drop: float
    increased: bool
    focus: float | None


class _Examiner:
    """Marks the maps of a runner."""

    def __init__(self, runner: Runner, spec: InputSpec, scores: Scores) -> None:
        self._runner = runner
        self._scores = scores
        self._mean = np.round(255 * np.asarray(spec.mean)).astype(np.uint8)
        self._methods = [name for name in runner.outputs if name.startswith(CAM_PREFIX)]

    def examine(
        self, picture: Picture, others: Sequence[Picture], target: int, number: int
    ) -> dict[str, _Marks]:
        """Mark every method and control on a picture, uint8 [H, W, C], of the class `target`.

        `others` are three pictures of other classes, or none, and `number` the picture's.
        """
        height, width = picture.shape[:2]
        class_id, maps = self._explain(picture, -1)
        maps |= controls(number, *next(iter(maps.values())).shape)
        focuses = self._focuses(picture, others, target, number) if others else {}
        empty, blur = np.broadcast_to(self._mean, picture.shape), blurred(picture)
        whole, nothing, start = self._probability(np.stack([picture, empty, blur]), class_id)
        areas: dict[bytes, tuple[float, float]] = {}
        marks = {}
        for name, values in maps.items():
            order = ranking(values, height, width)
            # Methods that differ by a factor rank alike, and are not run again.
            key = order.tobytes()
            if key not in areas:
                inserted = self._probability(replaced(blur, picture, order, STEPS), class_id)
                deleted = self._probability(replaced(picture, empty, order, STEPS), class_id)
                areas[key] = (
                    auc(np.r_[start, inserted, whole]),
                    auc(np.r_[whole, deleted, nothing]),
                )
            masked = float(
                self._probability(revealed(picture, self._mean, values)[None], class_id)[0]
            )
            insertion, deletion = areas[key]
            marks[name] = _Marks(
                insertion=insertion,
                deletion=deletion,
                drop=max(0.0, float(whole) - masked) / float(whole) if whole > 0 else 0.0,
                increased=masked > whole,
                focus=focuses.get(name),
            )
        return marks

    def _explain(self, picture: Picture, class_id: int) -> tuple[int, dict[str, Floats]]:
        """Return the best class, and the raw map of a class by every method."""
        inputs: dict[str, NDArray[Any]] = {
            IMAGE_INPUT: picture[None],
            CLASS_IDS_INPUT: np.array([[class_id]]),
        }
        outputs = self._runner.run(inputs, [LOGITS_OUTPUT, *self._methods])
        maps = {name.removeprefix(CAM_PREFIX): outputs[name][0, 0] for name in self._methods}
        return int(outputs[LOGITS_OUTPUT].argmax()), maps

    def _probability(self, pictures: Picture, class_id: int) -> Floats:
        logits = self._runner.run({IMAGE_INPUT: pictures}, [LOGITS_OUTPUT])[LOGITS_OUTPUT]
        found: Floats = score(logits, self._scores)[:, class_id]
        return found

    def _focuses(
        self, picture: Picture, others: Sequence[Picture], target: int, number: int
    ) -> dict[str, float]:
        quarter = number % 4
        tiles = [*others[:quarter], picture, *others[quarter:]]
        height, width = picture.shape[:2]
        _, maps = self._explain(mosaic(tiles, height, width), target)
        maps |= controls(number, *next(iter(maps.values())).shape)
        return {
            name: found
            for name, values in maps.items()
            if (found := focus(values, quarter)) is not None
        }


def mosaic(tiles: Sequence[Picture], height: int, width: int) -> Picture:
    """Shrink four pictures, uint8 [H, W, C], into the quarters of one of height x width."""
    rows, columns = (0, height // 2, height), (0, width // 2, width)
    whole = np.empty((height, width, tiles[0].shape[2]), np.uint8)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, 2)
        size = rows[row + 1] - rows[row], columns[column + 1] - columns[column]
        channels = [
            np.asarray(
                Image.fromarray(np.ascontiguousarray(tile[..., channel])).resize(
                    size[::-1], Image.Resampling.BILINEAR
                )
            )
            for channel in range(tile.shape[2])
        ]
        whole[rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = np.stack(
            channels, axis=-1
        )
    return whole


def focus(values: Floats, quarter: int) -> float | None:
    """Return the share of a map's positive part in a quarter, 0 to 3 by rows; None without one.

    A cell in the middle row or column belongs to the quarters beside it in equal parts.
    """
    positive = np.maximum(values, 0).astype(np.float64)
    total = positive.sum()
    if total <= 0:
        return None
    row, column = divmod(quarter, 2)
    shares = [_half(size, side) for size, side in zip(positive.shape, (row, column), strict=True)]
    return float(shares[0] @ positive @ shares[1] / total)


def _half(size: int, side: int) -> NDArray[np.float64]:
    """Return how much of each of `size` cells lies in the first or the second half of a line."""
    edges = np.arange(size + 1) / size * 2
    first = np.clip(edges[1:], 0, 1) - np.clip(edges[:-1], 0, 1)
    within: NDArray[np.float64] = first * size / 2
    return within if side == 0 else 1 - within


def measure_faithfulness(
    runner: Runner,
    spec: InputSpec,
    labelled: Labelled,
    scores: Scores,
    advance: Callable[[int], object] = lambda _: None,
    *,
    corrupt: list[str] | None = None,
) -> Faithfulness:
    """Measure every method of a bundle, and the two controls, on labelled pictures.

    Args:
        runner: the variant, loaded.
        spec: how a picture becomes its input.
        labelled: the pictures; at least two. Their classes count for the focus alone.
        scores: what makes probabilities of the logits.
        advance: told how many pictures were examined.
        corrupt: as in `foveate_runtime.evaluation.accuracy.prepared_batches`.

    Raises:
        LabelledError: a picture cannot be decoded, there are fewer than two, or the model has no
            maps or no probabilities.
        foveate_runtime.backends.base.BackendError: the engine fails.
    """
    if CLASS_IDS_INPUT not in runner.inputs:
        raise LabelledError("the model has no class activation maps to measure")
    if scores == "none":
        raise LabelledError("the model's scores are its logits: no map can be judged by them")
    batches = list(prepared_batches(labelled, spec, corrupt))
    pictures = np.concatenate([images for images, _ in batches])
    targets = np.concatenate([classes for _, classes in batches])
    if len(pictures) < _LEAST:
        raise LabelledError(f"the maps are measured on {_LEAST} pictures at least")
    examiner = _Examiner(runner, spec, scores)
    marks: dict[str, list[_Marks]] = {}
    for number, (picture, target) in enumerate(zip(pictures, targets, strict=True)):
        others = [pictures[other] for other in _others(targets, number)]
        found = examiner.examine(picture, others, int(target), number)
        for name, each in found.items():
            marks.setdefault(name, []).append(each)
        advance(1)
    return Faithfulness(
        data=labelled.name,
        images=len(pictures),
        variant=runner.variant,
        steps=STEPS,
        maps={name: _worth(found) for name, found in marks.items()},
    )


def _others(targets: NDArray[np.int64], number: int) -> Iterable[int]:
    """Return three pictures of other classes than that of a picture; none where there are not."""
    candidates = np.flatnonzero(targets != targets[number])
    if len(candidates) < 3:
        return []
    chosen: list[int] = np.random.default_rng(number).choice(candidates, 3, replace=False).tolist()
    return chosen


def _worth(marks: Sequence[_Marks]) -> MapWorth:
    focuses = [each.focus for each in marks if each.focus is not None]
    return MapWorth(
        insertion=_mean_of([each.insertion for each in marks]),
        deletion=_mean_of([each.deletion for each in marks]),
        average_drop=_mean_of([each.drop for each in marks]),
        increase=sum(each.increased for each in marks) / len(marks),
        focus=_mean_of(focuses) if len(focuses) >= _LEAST else None,
    )


def _mean_of(values: Sequence[float]) -> Mean:
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return Mean(mean=float(np.mean(values)), error=float(error))
