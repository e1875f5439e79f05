"""MNIST's test set as labelled pictures, which `--data mnist` names."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate_runtime.evaluation.labelled import LabelledError, NoPicturesError
from foveate_train.data import mnist
from foveate_train.errors import DataError


@dataclass(frozen=True)
class MnistTest:
    """Digits, uint8 [N, 28, 28], each yielded as a PNG file, and their classes, int64 [N]."""

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    name: str = "MNIST test set"

    def __len__(self) -> int:
        """Return how many digits there are."""
        return len(self.targets)

    def __iter__(self) -> Iterator[tuple[str, bytes, int]]:
        """Encode each digit when its turn comes."""
        for index, (image, target) in enumerate(zip(self.images, self.targets, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG", compress_level=1)
            yield f"test digit {index}", buffer.getvalue(), int(target)


def open_mnist(labels: Sequence[str], limit: int | None = None) -> MnistTest:
    """Return the first `limit` digits of MNIST's test set, or all, for a classifier of digits.

    Raises:
        NoPicturesError: the labels are not the ten digits.
        LabelledError: MNIST cannot be had.
    """
    if tuple(labels) != tuple("0123456789"):
        raise NoPicturesError(f"mnist has the classes 0 to 9, the model has {len(labels)} others")
    try:
        images, targets = mnist.load("test")
    except DataError as error:
        raise LabelledError(str(error)) from error
    return MnistTest(images[:limit], targets[:limit])
