"""Whether maps depend on what a network has learned: the model-randomisation test.

Adebayo et al., "Sanity Checks for Saliency Maps" (NeurIPS 2018): the weights of the last layer
are put at random, then those of the one before too, and so on to the first. A map of the same
class that stays as it was is drawn by the picture or by the architecture, as an edge detector
is, and says nothing of the network. Maps are compared by Spearman's rank correlation: 1 is the
same order of the cells, 0 what chance gives.

A layer is a node of the graph on the way to the logits that reads weights: numbers in two
dimensions or more. They keep their values in another order, so that activations keep their
size. A value's new one is chosen by the value alone: a copy of the weights in another layout,
as maps may read it, is changed alike.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.onnxruntime.pruning import OnnxFile
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import (
    CAM_PREFIX,
    CLASS_IDS_INPUT,
    IMAGE_INPUT,
    LOGITS_OUTPUT,
    Mean,
    Randomisation,
)
from foveate_runtime.evaluation.accuracy import prepared_batches
from foveate_runtime.evaluation.labelled import Labelled

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the layers, the last ones; a step with the last one alone comes before."""
_FEW = 2
"""Values, of which a mask consists, and no weights."""
_DIMENSIONS = 2
_LEAST = 2
"""Maps, of which a standard error takes two."""

Floats = NDArray[np.float32]


def measure_randomisation(
    bundle: Bundle,
    runner: Runner,
    labelled: Labelled,
    advance: Callable[[int], object] = lambda _: None,
    *,
    corrupt: list[str] | None = None,
) -> Randomisation | None:
    """Compare the maps of a variant with its own when layers have random weights.

    The graphs with random weights run on the processor, in the preferred engine.

    Args:
        bundle: whose graph is changed, in a folder of its own.
        runner: the variant, loaded; it has maps.
        labelled: the pictures; their classes do not count, the classifier's best one is explained.
        advance: called with the number of pictures of each batch, the first time.
        corrupt: as in `foveate_runtime.evaluation.accuracy.prepared_batches`.

    Returns:
        None where the variant is quantised or has no weights in float32.

    Raises:
        LabelledError: a picture cannot be decoded.
        foveate_runtime.backends.base.BackendError: an engine fails.
    """
    entry = bundle.manifest.variant(runner.variant)
    file = OnnxFile(bundle.file(runner.variant))
    weights = Weights(dict(file.arrays()))
    layers = find_layers(file, weights.names)
    # Few layers of a quantised graph are in float32, and they do not represent the others.
    if entry.quantisation is not None or not layers:
        return None
    methods = [name for name in runner.outputs if name.startswith(CAM_PREFIX)]
    batches: list[_Batch] = []
    for images, _ in prepared_batches(labelled, bundle.manifest.input, corrupt):
        logits = runner.run({IMAGE_INPUT: images}, [LOGITS_OUTPUT])[LOGITS_OUTPUT]
        batches.append(_Batch.explain(runner, methods, images, logits.argmax(1)[:, None]))
        advance(len(images))
    steps = sorted({1, *(max(1, round(share * len(layers))) for share in SHARES)})
    found: dict[str, list[Mean | None]] = {name: [] for name in methods}
    for step in steps:
        names = {name for layer in layers[-step:] for name in layer}
        with TemporaryDirectory(prefix="foveate-random-") as folder:
            changed = replace(bundle, path=Path(folder))
            path = changed.file(runner.variant)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.exchanged(weights.shuffled(names)))
            with create_runner(changed, variant=runner.variant) as other:
                alike = _similarities(batches, other, methods)
        for name, values in alike.items():
            found[name].append(_mean_of(values))
    return Randomisation(
        of=len(layers),
        layers=tuple(steps),
        maps={name.removeprefix(CAM_PREFIX): tuple(means) for name, means in found.items()},
    )


def find_layers(file: OnnxFile, names: Iterable[str]) -> list[list[str]]:
    """Return the weights, of `names`, of each layer on the way to the logits, the first first.

    Weights that several layers share are those of the first of them.
    """
    free = set(names)
    layers = []
    for reads in file.reads([LOGITS_OUTPUT]):
        found = [name for name in dict.fromkeys(reads) if name in free]
        if found:
            layers.append(found)
            free.difference_update(found)
    return layers


def rank_correlation(one: Floats, other: Floats) -> float | None:
    """Return Spearman's rank correlation of two maps of one shape; None where one has no order."""
    ranks = [_ranks(values.ravel()) for values in (one, other)]
    centred = [each - each.mean() for each in ranks]
    sizes = [float(np.sqrt((each**2).sum())) for each in centred]
    if not all(np.isfinite(values).all() for values in (one, other)) or min(sizes) == 0:
        return None
    return float(centred[0] @ centred[1] / (sizes[0] * sizes[1]))


def _ranks(values: Floats) -> NDArray[np.float64]:
    """Return the ranks of values [n]; equal ones have the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return means[places]


class Weights:
    """The weights of a graph, and how they are put at random."""

    def __init__(self, arrays: Mapping[str, Floats]) -> None:
        self._arrays: dict[str, Floats] = {}
        self._keys: dict[str, bytes] = {}
        for name, values in arrays.items():
            if values.ndim >= _DIMENSIONS and len(levels := np.unique(values)) > _FEW:
                self._arrays[name] = values
                self._keys[name] = sha256(levels.tobytes()).digest()

    @property
    def names(self) -> Iterable[str]:
        """The initializers that are weights."""
        return self._arrays

    def shuffled(self, names: Iterable[str]) -> dict[str, Floats]:
        """Return new values for the weights `names`, and for what holds the same values."""
        keys = {self._keys[name] for name in names}
        return {
            name: _shuffled(self._arrays[name], key)
            for name, key in self._keys.items()
            if key in keys
        }


def _shuffled(values: Floats, key: bytes) -> Floats:
    levels, places = np.unique(values, return_inverse=True)
    other = np.random.default_rng(list(key)).permutation(levels)
    return other[places].reshape(values.shape).astype(np.float32)


@dataclass(frozen=True)
class _Batch:
    """Pictures, uint8 [N, H, W, C], the class of each, [N, 1], and its maps [N, 1, h, w]."""

    images: NDArray[np.uint8]
    classes: NDArray[np.int64]
    maps: Mapping[str, NDArray[Any]]

    @classmethod
    def explain(
        cls,
        runner: Runner,
        methods: Sequence[str],
        images: NDArray[np.uint8],
        classes: NDArray[np.int64],
    ) -> "_Batch":
        """Have a runner explain the classes."""
        inputs: dict[str, NDArray[Any]] = {IMAGE_INPUT: images, CLASS_IDS_INPUT: classes}
        return cls(images, classes, runner.run(inputs, methods))


def _similarities(
    batches: Iterable[_Batch], other: Runner, methods: Sequence[str]
) -> dict[str, list[float]]:
    """Return, by method, how like each map is to that of another network."""
    found: dict[str, list[float]] = {name: [] for name in methods}
    for batch in batches:
        changed = _Batch.explain(other, methods, batch.images, batch.classes)
        for name in methods:
            pairs = zip(batch.maps[name][:, 0], changed.maps[name][:, 0], strict=True)
            alike = (rank_correlation(one, two) for one, two in pairs)
            found[name] += [each for each in alike if each is not None]
    return found


def _mean_of(values: Sequence[float]) -> Mean | None:
    if len(values) < _LEAST:
        return None
    error = float(np.std(values, ddof=1) / len(values) ** 0.5)
    return Mean(mean=float(np.mean(values)), error=error)
