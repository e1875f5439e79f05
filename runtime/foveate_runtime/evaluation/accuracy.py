"""Measures a bundle's accuracy with the pieces that serve it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.backends.base import Runner
from foveate_runtime.bundle.manifest import IMAGE_INPUT, LOGITS_OUTPUT, Accuracy, InputSpec
from foveate_runtime.cores import count_cores
from foveate_runtime.evaluation.labelled import Labelled, LabelledError
from foveate_runtime.imaging.decode import ImageError, ImageLimits
from foveate_runtime.imaging.transform import prepare

BATCH = 32
"""Where the throughput of a CPU has long stopped growing with the batch."""

FIRST = 5


@dataclass
class Tally:
    """Counts how often the right class comes first, and among the first five."""

    images: int = 0
    first: int = 0
    among_five: int = 0

    def add(self, logits: NDArray[Any], targets: NDArray[np.int64]) -> None:
        """Count a batch: `logits` float [N, classes], `targets` int64 [N]."""
        # Stable, so that equal logits rank as in the graph: the lower class first.
        best = np.argsort(-logits, axis=1, kind="stable")[:, :FIRST]
        hits = best == targets[:, None]
        self.first += int(hits[:, 0].sum())
        self.among_five += int(hits.any(1).sum())
        self.images += len(targets)

    def accuracy(self, data: str) -> Accuracy:
        """Return the shares of at least one picture of `data`."""
        return Accuracy(
            data=data,
            images=self.images,
            top1=self.first / self.images,
            top5=self.among_five / self.images,
        )


def prepared_batches(
    labelled: Labelled,
    spec: InputSpec,
    corrupt: list[str] | None = None,
    names: list[str] | None = None,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Yield up to `BATCH` pictures at a time, as the server prepares them, and their classes.

    These are uint8 [N, H, W, C] and int64 [N].

    Args:
        labelled: the pictures.
        spec: how a picture becomes an input.
        corrupt: gets what is wrong with each picture that cannot be read or decoded,
            and that is left out; None where there must be none.
        names: gets the names of each batch's pictures before it is yielded.

    Raises:
        LabelledError: a picture cannot be decoded; named, since an accuracy over
            the rest would pass for one over all. Or none can.
    """

    def decode(item: tuple[str, bytes | Path, int]) -> NDArray[np.uint8] | LabelledError:
        try:
            return prepared(item[1], spec, item[0])
        except LabelledError as error:
            return error

    seen = 0
    with ThreadPoolExecutor(count_cores()) as pool:
        pictures = iter(labelled)
        while batch := list(islice(pictures, BATCH)):
            images, targets = [], []
            for (name, _, target), image in zip(batch, pool.map(decode, batch), strict=True):
                if not isinstance(image, LabelledError):
                    images.append(image)
                    targets.append(target)
                    if names is not None:
                        names.append(name)
                elif corrupt is None:
                    raise LabelledError(f"{image}; --corrupt skip leaves such pictures out")
                else:
                    corrupt.append(str(image))
            seen += len(images)
            if images:
                yield np.stack(images), np.array(targets)
    if not seen:
        raise LabelledError(f"{labelled.name}: none of its {len(labelled)} pictures can be decoded")


def prepared(data: bytes | Path, spec: InputSpec, name: str) -> NDArray[np.uint8]:
    """Turn an encoded picture, or its file, into uint8 [H, W, C], as the server does.

    Raises LabelledError where it, called `name`, cannot be read or decoded.
    """
    try:
        encoded = data.read_bytes() if isinstance(data, Path) else data
        image, _ = prepare(encoded, spec, ImageLimits())
    except OSError as error:
        raise LabelledError(f"{name}: {error.strerror}") from error
    except ImageError as error:
        raise LabelledError(f"{name}: {error}") from error
    return image


def measure_accuracy(
    runner: Runner,
    spec: InputSpec,
    labelled: Labelled,
    advance: Callable[[int], object] = lambda _: None,
    *,
    corrupt: list[str] | None = None,
    observe: Callable[[NDArray[np.uint8], NDArray[Any], NDArray[np.int64]], object] | None = None,
) -> Accuracy:
    """Classify every labelled picture and count how often its class is found.

    Args:
        runner: the variant, loaded.
        spec: how a picture becomes its input.
        labelled: the pictures; at least one.
        advance: called with the number of pictures of each batch.
        corrupt: as in `prepared_batches`.
        observe: called for each batch with the pictures, their logits and their classes.

    Raises:
        LabelledError: a picture cannot be decoded.
        foveate_runtime.backends.base.BackendError: the engine fails.
    """
    tally = Tally()
    for images, targets in prepared_batches(labelled, spec, corrupt):
        logits = runner.run({IMAGE_INPUT: images}, [LOGITS_OUTPUT])[LOGITS_OUTPUT]
        tally.add(logits, targets)
        if observe is not None:
            observe(images, logits, targets)
        advance(len(targets))
    return tally.accuracy(labelled.name)
