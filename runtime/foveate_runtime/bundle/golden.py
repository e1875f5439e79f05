"""Golden answers: pictures and torch's outputs for them, kept in a bundle.

With them a machine without torch can check that a graph still has the outputs of
its export, on its engine and its processor. The file stays under
`MOST_BYTES`: of large outputs it holds some of the values, spread over all of
them, and the largest absolute value of each map.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.bundle import Bundle, BundleError
from foveate_runtime.bundle.manifest import CAM_PREFIX, CLASS_IDS_INPUT, IMAGE_INPUT, Tolerances

GOLDEN_FILE = "golden.npz"

MOST_BYTES = 1_000_000
MOST_IMAGES = 4
_IMAGE_BYTES = 600_000
_VALUE_BYTES = 300_000

FLOOR = 1e-3
"""The least scale of a map's difference, as a share of the largest value of all maps: the map of
a class without evidence is nearly empty."""

_STEP = 1_000_003
"""A prime far from any power of two: its multiples fall on all channels, rows and columns."""

_VALUES, _LARGEST = "values/", "largest/"

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array], Sequence[str]], Mapping[str, Array]]
"""Runs a graph, as `foveate_runtime.backends.base.Runner.run` does."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Some values of an output in torch.

    `values` is float32 [maps, S], `largest` float32 [maps]: the largest absolute value,
    of a map that a ReLU ends before the ReLU. A class activation
    map is one map; the logits, or a feature map, of one picture are one too.
    """

    values: NDArray[np.float32]
    largest: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """`images` is uint8 [N, H, W, C], `class_ids` int64 [N, K] or None without maps."""

    images: NDArray[np.uint8]
    class_ids: NDArray[np.int64] | None
    outputs: Mapping[str, Expected]

    @property
    def inputs(self) -> dict[str, Array]:
        """The inputs of the graph."""
        inputs: dict[str, Array] = {IMAGE_INPUT: self.images}
        if self.class_ids is not None:
            inputs[CLASS_IDS_INPUT] = self.class_ids
        return inputs

    def errors(self, run: Run, measure: str) -> dict[str, float]:
        """Run a graph on the pictures and return how far each output lies from torch.

        `measure` is one of `Tolerances.measure`. Infinite where a value is no
        finite number. Raises what `run` raises, and BundleError where the
        graph's outputs are not those of the file.
        """
        results = run(self.inputs, list(self.outputs))
        return {
            name: _error(_sampled(name, results[name], expected), expected, measure)
            for name, expected in self.outputs.items()
        }

    def write(self, path: Path) -> None:
        """Write the file."""
        arrays: dict[str, Array] = dict(self.inputs)
        for name, expected in self.outputs.items():
            arrays[_VALUES + name] = expected.values
            arrays[_LARGEST + name] = expected.largest
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)


def open_golden(bundle: Bundle) -> Golden | None:
    """Read a bundle's golden answers; None where it has none. Raises BundleError."""
    entry = bundle.manifest.golden
    if entry is None:
        return None
    if bundle.manifest.files[entry.file].size > MOST_BYTES:
        raise BundleError(f"{entry.file}: larger than the limit of {MOST_BYTES} bytes")
    try:
        with np.load(bundle.path / entry.file, allow_pickle=False) as arrays:
            return Golden(
                images=arrays[IMAGE_INPUT],
                class_ids=arrays.get(CLASS_IDS_INPUT),
                outputs={
                    name: Expected(values=arrays[_VALUES + name], largest=arrays[_LARGEST + name])
                    for key in arrays.files
                    if (name := key.removeprefix(_VALUES)) != key
                },
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{entry.file}: not a file of golden answers") from error


def fitting(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the first pictures, as many as the file has room for, and at least one.

    Where there is no room for one, it is made coarser, its size unchanged: a
    pixel takes the place of the square that it is the corner of.
    """
    _, height, width, channels = images.shape
    side = 1
    while -(-height // side) * -(-width // side) * channels > _IMAGE_BYTES:
        side += 1
    if side == 1:
        return images[: min(MOST_IMAGES, _IMAGE_BYTES // images[0].nbytes)]
    coarse = images[:1, ::side, ::side]
    return coarse.repeat(side, axis=1).repeat(side, axis=2)[:, :height, :width]


def expect(
    answers: Mapping[str, NDArray[np.float32]],
    sizes: Mapping[str, NDArray[np.float32]] | None = None,
) -> dict[str, Expected]:
    """Choose the values to keep of torch's answers, given by output.

    `sizes` are the largest absolute values of an output's maps where the answers do not
    show them, as behind a ReLU: float [N, K].
    """
    known = sizes or {}
    maps = {name: _maps(name, answer) for name, answer in answers.items()}
    count = max(1, _VALUE_BYTES // (4 * sum(len(values) for values in maps.values())))
    return {
        name: Expected(
            values=values[:, _positions(values.shape[1], count)],
            largest=known[name].reshape(-1) if name in known else np.abs(values).max(1),
        )
        for name, values in maps.items()
    }


def refusals(errors: Mapping[str, float], tolerances: Tolerances) -> dict[str, float]:
    """Return the errors that are not accepted."""
    return {name: error for name, error in errors.items() if not error <= tolerances.limit(name)}


def _maps(output: str, array: Array) -> Array:
    """Return the maps of an output, each flat: [maps, cells]."""
    leading = 2 if output.startswith(CAM_PREFIX) else 1
    return array.reshape(int(np.prod(array.shape[:leading])), -1)


def _positions(size: int, count: int) -> NDArray[np.int64]:
    if size <= count:
        return np.arange(size)
    return np.arange(count) * _STEP % size


def _sampled(output: str, array: Array, expected: Expected) -> Array:
    maps = _maps(output, array)
    values: Array = maps[:, _positions(maps.shape[1], expected.values.shape[1])]
    if values.shape != expected.values.shape:
        raise BundleError(f"{GOLDEN_FILE}: it is not of these outputs")
    return values


def _error(got: Array, expected: Expected, measure: str) -> float:
    if not np.isfinite(got).all():
        return float("inf")
    difference = np.abs(got - expected.values).astype(np.float64)
    if measure == "rms":
        signal = float(np.square(expected.values, dtype=np.float64).sum())
        return float(np.sqrt(np.square(difference).sum() / (signal or 1)))
    scale = np.maximum(expected.largest, FLOOR * expected.largest.max())
    return float((difference.max(1) / np.where(scale > 0, scale, 1)).max())
