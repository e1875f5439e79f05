"""The pictures that int8's ranges are measured on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate_export.errors import ExportError, UsageError
from foveate_export.pictures import DIGITS, decoded, png, serving_spec
from foveate_runtime.evaluation.labelled import SUFFIXES, image_files
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


def open_calibration(data: str, classifier: Classifier) -> Calibration:
    """Read up to `MOST` pictures, as the server prepares them.

    Args:
        data: `mnist` for MNIST's training digits, or a folder; of a larger one
            the pictures are taken evenly spaced by name.
        classifier: whose input they become.

    Raises:
        UsageError: no such folder, or digits for a classifier of something else.
        ExportError: the folder holds no pictures, or one cannot be decoded.
    """
    spec = serving_spec(classifier.input)
    if data == "mnist":
        if classifier.labels != DIGITS:
            raise UsageError("calibration mnist: the classifier's labels are not the ten digits")
        digits, _ = mnist.load("train")
        named = [(f"training digit {i}", png(digits[i])) for i in range(MOST)]
        description = "MNIST training digits"
    else:
        folder = Path(data)
        if not folder.is_dir():
            raise UsageError(f"calibration {data}: no such folder")
        files = image_files(folder)
        if not files:
            raise ExportError(
                f"calibration {data}: it holds no pictures ({', '.join(sorted(SUFFIXES))})"
            )
        if len(files) > MOST:
            files = [files[i * len(files) // MOST] for i in range(MOST)]
        named = [(f"calibration {path}", path.read_bytes()) for path in files]
        description = f"pictures of {folder.name}"
    return Calibration(np.stack([decoded(data, spec, name) for name, data in named]), description)
