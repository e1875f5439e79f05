"""Labelled pictures, to measure an accuracy on: an image folder, or MNIST's test set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate_export.errors import UsageError
from foveate_export.pictures import png
from foveate_serve.evaluation.labelled import Labelled, open_folder
from foveate_train.data import mnist


@dataclass(frozen=True)
class MnistTest:
    """MNIST's test set, its first `limit` digits, each as a PNG file."""

    limit: int | None = None
    name: str = "MNIST test set"

    def __len__(self) -> int:
        """Return how many digits there are."""
        return len(mnist.load("test")[1][: self.limit])

    def __iter__(self) -> Iterator[tuple[str, bytes, int]]:
        """Encode each digit when its turn comes."""
        images, labels = mnist.load("test")
        for index in range(len(self)):
            yield f"test digit {index}", png(images[index]), int(labels[index])


def open_labelled(data: str, labels: Sequence[str], limit: int | None = None) -> Labelled:
    """Return the pictures that `data` names, for a classifier with these labels.

    Args:
        data: `mnist`, or a folder with one folder a class; see
            `foveate_serve.evaluation.labelled.open_folder`.
        labels: the classifier's labels, by index.
        limit: how many pictures to take; None for all.

    Raises:
        UsageError: the labels are not MNIST's digits.
        foveate_serve.evaluation.labelled.LabelledError: the folder does not
            exist, has no pictures, or has folders that are none of the classes.
    """
    if data != "mnist":
        return open_folder(Path(data), labels, limit)
    if tuple(labels) != tuple("0123456789"):
        raise UsageError(f"mnist has the classes 0 to 9, the model has {len(labels)} others")
    return MnistTest(limit)
