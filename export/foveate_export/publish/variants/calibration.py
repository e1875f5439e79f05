"""The pictures that int8's ranges are measured on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate_export.errors import ExportError, UsageError
from foveate_export.pictures import DIGITS, decoded, from_folder, png
from foveate_train.classifier import Classifier
from foveate_train.data import mnist

MOST = 256
"""The extremes of more pictures widen the ranges, for a time that grows with their number."""


@dataclass(frozen=True)
class Calibration:
    """Pictures of a classifier's size, uint8 [N, H, W, C], and where they come from."""

    images: NDArray[np.uint8]
    description: str

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.images)

    @property
    def digest(self) -> str:
        """`sha256:<hex>` over the shape and the pixels."""
        state = hashlib.sha256(repr(self.images.shape).encode())
        state.update(np.ascontiguousarray(self.images).data)
        return f"sha256:{state.hexdigest()}"


def open_calibration(
    data: str, classifier: Classifier, corrupt: list[str] | None = None
) -> Calibration:
    """Read up to `MOST` pictures, as the server prepares them.

    Args:
        data: `mnist` for MNIST's training digits, or a folder; of a larger one
            the pictures are taken evenly spaced by name.
        classifier: whose input they become.
        corrupt: as in `foveate_export.pictures.from_folder`.

    Raises:
        UsageError: no such folder, or digits for a classifier of something else.
        ExportError: the folder holds no pictures, or one cannot be decoded.
    """
    spec = classifier.input
    if data == "mnist":
        if classifier.labels != DIGITS:
            raise UsageError("calibration mnist: the classifier's labels are not the ten digits")
        digits, _ = mnist.load("train")
        images = [decoded(png(digits[i]), spec, f"training digit {i}") for i in range(MOST)]
        return Calibration(np.stack(images), "MNIST training digits")
    folder = Path(data)
    if not folder.is_dir():
        raise UsageError(f"calibration {data}: no such folder")
    try:
        pictures = from_folder(folder, spec, most=MOST, corrupt=corrupt)
    except ExportError as error:
        raise ExportError(f"calibration {error}") from error
    return Calibration(pictures.images, pictures.description)
