"""Labelled pictures, to measure an accuracy on: an image folder, or MNIST's test set."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from timm.data import ImageNetInfo

from foveate_export.errors import ExportError, UsageError
from foveate_export.pictures import image_files, png
from foveate_train.data import mnist

_NAMED = 5
"""How many folders an error names before it counts the rest."""


class Labelled(Protocol):
    """Encoded pictures with their classes."""

    @property
    def name(self) -> str:
        """What they are called in reports."""

    def __len__(self) -> int:
        """Return how many pictures there are."""

    def __iter__(self) -> Iterator[tuple[str, bytes, int]]:
        """Yield each picture's name, encoded bytes and class index."""


@dataclass(frozen=True)
class ImageFolder:
    """The picture files of a folder that holds one folder a class."""

    name: str
    files: tuple[tuple[Path, int], ...]

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[str, bytes, int]]:
        """Read each picture when its turn comes."""
        for path, target in self.files:
            yield str(path), path.read_bytes(), target


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
        data: `mnist`, or a folder with one folder a class. A folder is called
            as the label, by its WordNet id where the classes are ImageNet's
            1000, or by the class index.
        labels: the classifier's labels, by index.
        limit: how many pictures to take, evenly spread over a folder; None for
            all.

    Raises:
        UsageError: the folder does not exist, or has no pictures, or the labels
            are not MNIST's digits.
        ExportError: folders that are none of the classes; named.
    """
    if data == "mnist":
        if tuple(labels) != tuple("0123456789"):
            raise UsageError(f"mnist has the classes 0 to 9, the model has {len(labels)} others")
        return MnistTest(limit)
    folder = Path(data)
    if not folder.is_dir():
        raise UsageError(f"{data}: no such folder")
    targets = _Targets(labels)
    files = []
    unknown = []
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        pictures = image_files(child)
        target = targets.find(child.name)
        if target is not None:
            files += [(path, target) for path in pictures]
        elif pictures:
            unknown.append(child.name)
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise ExportError(
            f"{data}: {', '.join(unknown[:_NAMED])}{more}: neither a label, nor a WordNet id, "
            f"nor an index of the model's {len(labels)} classes"
        )
    if not files:
        raise UsageError(f"{data} holds no pictures; it needs one folder a class")
    if limit is not None and limit < len(files):
        files = [files[i * len(files) // limit] for i in range(limit)]
    return ImageFolder(folder.name, tuple(files))


class _Targets:
    """Class indices by the names that folders give them."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._count = len(labels)
        # A label that stands twice, such as ImageNet's crane, says nothing.
        self._by_label = {
            label: index for index, label in enumerate(labels) if labels.count(label) == 1
        }
        self._by_wordnet: dict[str, int] = {}
        imagenet = ImageNetInfo()
        if imagenet.num_classes() == len(labels):
            self._by_wordnet = {name: i for i, name in enumerate(imagenet.label_names())}

    def find(self, name: str) -> int | None:
        if name in self._by_label:
            return self._by_label[name]
        if name in self._by_wordnet:
            return self._by_wordnet[name]
        if re.fullmatch(r"\d{1,9}", name) and int(name) < self._count:
            return int(name)
        return None
