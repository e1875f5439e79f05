"""How faithful maps are: the classifier's answer to the pixels that a map marks.

For every picture the class that the classifier puts first is explained, by each method of
the bundle and by two controls that do not depend on it: noise of the maps' size, and a
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
map without information has a quarter.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
    """Return the maps [height, width] of the controls for photograph `number`."""
    noise = np.random.default_rng(number).random((height, width), dtype=np.float32)
    rows, columns = (
        np.exp(-0.5 * (((np.arange(size) + 0.5) / size - 0.5) / CENTRE_SIGMA) ** 2)
        for size in (height, width)
    )
    return {"random": noise, "centre Gaussian": np.outer(rows, columns).astype(np.float32)}


class Explaining(Protocol):
    """The part of a runner (`foveate_runtime.backends.base.Runner`) that an examiner uses."""

    @property
    def outputs(self) -> Iterable[str]:
        """The names of the graph's outputs."""
        ...

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> Mapping[str, NDArray[Any]]:
        """Run the graph on a batch and return the outputs named."""
        ...


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The probabilities of the explained class of one picture, along one map.

    `insertion` and `deletion` hold p_0 to p_n, float32 [n + 1]; `masked` is the probability
    of the pixels under the map, and `whole` that of the picture.
    """

    insertion: Floats
    deletion: Floats
    masked: float
    whole: float

    @property
    def drop(self) -> float:
        """The share of the probability that the mask takes away; 0 where there was none."""
        return max(0.0, self.whole - self.masked) / self.whole if self.whole > 0 else 0.0

    @property
    def increased(self) -> bool:
        """Whether the mask raises the probability."""
        return self.masked > self.whole


class Examiner:
    """Examines the maps of a runner.

    Args:
        runner: the graph, loaded.
        spec: the graph's input, for the mean colour.
        scores: the function from logits to probabilities.
        steps: the number of parts in which the pixels are inserted and deleted.
    """

    def __init__(
        self, runner: Explaining, spec: InputSpec, scores: Scores, steps: int = STEPS
    ) -> None:
        self._runner = runner
        self._scores = scores
        self._steps = steps
        self._mean = np.round(255 * np.asarray(spec.mean)).astype(np.uint8)
        self._methods = [name for name in runner.outputs if name.startswith(CAM_PREFIX)]

    def curves(self, picture: Picture, number: int) -> dict[str, Curves]:
        """Examine every method and control on a picture, uint8 [H, W, C].

        The class is the classifier's best one; `number` is the picture's, for the noise.
        """
        height, width = picture.shape[:2]
        class_id, maps = self._explain(picture, -1, number)
        empty, blur = np.broadcast_to(self._mean, picture.shape), blurred(picture)
        whole, nothing, start = self._probability(np.stack([picture, empty, blur]), class_id)
        along: dict[bytes, tuple[Floats, Floats]] = {}
        found = {}
        for name, values in maps.items():
            order = ranking(values, height, width)
            # Methods that differ by a factor rank alike, and are not run again.
            key = order.tobytes()
            if key not in along:
                inserted = self._probability(replaced(blur, picture, order, self._steps), class_id)
                deleted = self._probability(replaced(picture, empty, order, self._steps), class_id)
                along[key] = np.r_[start, inserted, whole], np.r_[whole, deleted, nothing]
            masked = revealed(picture, self._mean, values)
            insertion, deletion = along[key]
            found[name] = Curves(
                insertion=insertion,
                deletion=deletion,
                masked=float(self._probability(masked[None], class_id)[0]),
                whole=float(whole),
            )
        return found

    def focuses(
        self, picture: Picture, others: Sequence[Picture], target: int, number: int
    ) -> dict[str, float]:
        """Return the focus of every map that has one, among three pictures of other classes.

        `target` is the class of the picture and `number` its number.
        """
        quarter = number % 4
        tiles = [*others[:quarter], picture, *others[quarter:]]
        _, maps = self._explain(mosaic(tiles, *picture.shape[:2]), target, number)
        return {
            name: found
            for name, values in maps.items()
            if (found := focus(values, quarter)) is not None
        }

    def _explain(
        self, picture: Picture, class_id: int, number: int
    ) -> tuple[int, dict[str, Floats]]:
        """Return the best class, and the map of a class by every method and control."""
        inputs: dict[str, NDArray[Any]] = {
            IMAGE_INPUT: picture[None],
            CLASS_IDS_INPUT: np.array([[class_id]]),
        }
        outputs = self._runner.run(inputs, [LOGITS_OUTPUT, *self._methods])
        maps: dict[str, Floats] = {
            name.removeprefix(CAM_PREFIX): outputs[name][0, 0] for name in self._methods
        }
        maps |= controls(number, *next(iter(maps.values())).shape)
        return int(outputs[LOGITS_OUTPUT].argmax()), maps

    def _probability(self, pictures: Picture, class_id: int) -> Floats:
        logits = self._runner.run({IMAGE_INPUT: pictures}, [LOGITS_OUTPUT])[LOGITS_OUTPUT]
        found: Floats = score(logits, self._scores)[:, class_id]
        return found


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
        advance: called with the number of pictures examined.
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
    examiner = Examiner(runner, spec, scores)
    curves: dict[str, list[Curves]] = {}
    focuses: dict[str, list[float]] = {}
    for number, (picture, target) in enumerate(zip(pictures, targets, strict=True)):
        for name, each in examiner.curves(picture, number).items():
            curves.setdefault(name, []).append(each)
        if others := [pictures[other] for other in _others(targets, number)]:
            for name, share in examiner.focuses(picture, others, int(target), number).items():
                focuses.setdefault(name, []).append(share)
        advance(1)
    return Faithfulness(
        data=labelled.name,
        images=len(pictures),
        variant=runner.variant,
        steps=STEPS,
        maps={name: _worth(found, focuses.get(name, [])) for name, found in curves.items()},
    )


def _others(targets: NDArray[np.int64], number: int) -> Iterable[int]:
    """Return three pictures of other classes than that of a picture; none where there are not."""
    candidates = np.flatnonzero(targets != targets[number])
    if len(candidates) < 3:
        return []
    chosen: list[int] = np.random.default_rng(number).choice(candidates, 3, replace=False).tolist()
    return chosen


def _worth(curves: Sequence[Curves], focuses: Sequence[float]) -> MapWorth:
    return MapWorth(
        insertion=_mean_of([auc(each.insertion) for each in curves]),
        deletion=_mean_of([auc(each.deletion) for each in curves]),
        average_drop=_mean_of([each.drop for each in curves]),
        increase=sum(each.increased for each in curves) / len(curves),
        focus=_mean_of(focuses) if len(focuses) >= _LEAST else None,
    )


def _mean_of(values: Sequence[float]) -> Mean:
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return Mean(mean=float(np.mean(values)), error=float(error))
