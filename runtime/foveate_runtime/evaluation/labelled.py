"""Labelled pictures: an image folder or a data set, matched with the labels of a classifier."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from itertools import chain
from pathlib import Path
from stat import S_ISREG
from typing import Protocol

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif"})
"""The names, in lower case, of the formats that the server decodes."""

DATA_SETS = "foveate.data_sets"
"""The entry point group of data sets that have a name: functions that take the labels and the
limit of `open_labelled` and return Labelled; they raise LabelledError."""

_SYNSETS = "imagenet_synsets.txt"
"""The WordNet ids of the 1000 classes of ILSVRC 2012, in the order of their indices."""

_NAMED = 5
"""How many folders an error names before it counts the rest."""


class LabelledError(Exception):
    """Labelled pictures that cannot be used; the message names what is at fault."""


class NoPicturesError(LabelledError):
    """There are no pictures in the place given."""


class TooFewPicturesError(LabelledError):
    """Fewer pictures than a coverage takes; the message gives the number needed."""


class Labelled(Protocol):
    """Encoded pictures, or their files, with their classes."""

    @property
    def name(self) -> str:
        """What they are called in reports."""

    def __len__(self) -> int:
        """Return how many pictures there are."""

    def __iter__(self) -> Iterator[tuple[str, bytes | Path, int]]:
        """Yield each picture's name, encoded bytes or file, and class index."""


@dataclass(frozen=True)
class ImageFolder:
    """The picture files of a folder that holds one folder a class."""

    name: str
    files: tuple[tuple[Path, int], ...]

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[str, Path, int]]:
        """Yield each picture's name, file and class index."""
        for path, target in self.files:
            yield str(path), path, target


def open_labelled(
    data: str,
    labels: Sequence[str],
    limit: int | None = None,
    passed: list[str] | None = None,
) -> Labelled:
    """Return the pictures that `data` names, for a classifier with these labels.

    Args:
        data: a data set that an installed distribution brings, such as `mnist` of
            foveate-train; or a folder, as in `open_folder`.
        labels: the classifier's labels, by index.
        limit: how many pictures to take; None for all.
        passed: as in `open_folder`.

    Raises:
        NoPicturesError: the folder does not exist, or has no pictures.
        LabelledError: the classes are not those of the labels.
    """
    point = next(iter(entry_points(group=DATA_SETS, name=data)), None)
    if point is None:
        return open_folder(Path(data), labels, limit, passed)
    labelled: Labelled = point.load()(labels, limit)
    return labelled


def open_folder(
    folder: Path,
    labels: Sequence[str],
    limit: int | None = None,
    passed: list[str] | None = None,
) -> ImageFolder:
    """Return the pictures of a folder with one folder a class.

    Args:
        folder: its folders are called as the label, by their WordNet id where
            the classes are ImageNet's 1000, or by the class index.
        labels: the classifier's labels, by index.
        limit: how many pictures to take, evenly spread over the folder; None
            for all.
        passed: gets the folders that are none of the classes, which are passed
            over; None where there must be none.

    Raises:
        NoPicturesError: the folder does not exist, or has no pictures.
        LabelledError: folders that are none of the classes, or all of them; named.
    """
    if not folder.is_dir():
        raise NoPicturesError(f"{folder}: no such folder")
    targets = Targets(labels)
    found: list[tuple[Path, int]] = []
    unknown = []
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        pictures = image_files(child)
        target = targets.find(child.name)
        if target is not None:
            found += [(path, target) for path in pictures]
        elif pictures:
            unknown.append(child.name)
    if unknown and passed is not None and found:
        passed += map(written, unknown)
    elif unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise LabelledError(
            f"{folder}: {', '.join(map(written, unknown[:_NAMED]))}{more}: neither a label, "
            f"nor a WordNet id, nor an index of the model's {len(labels)} classes"
        )
    if not found:
        raise NoPicturesError(f"{folder} holds no pictures; it needs one folder a class")
    if limit is not None and limit < len(found):
        found = [found[i * len(found) // limit] for i in range(limit)]
    return ImageFolder(folder.name, tuple(found))


def written(name: str) -> str:
    """Return a file's name as text that can be printed: bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def image_files(folder: Path) -> list[Path]:
    """Return the picture files in `folder` and its subfolders, sorted by path.

    A link that cannot be followed is one of them, and an error when it is read.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and _may_be_read(path)
    )


def _may_be_read(path: Path) -> bool:
    """Return whether a path is that of a file; not of a pipe, whose bytes may never come."""
    try:
        return S_ISREG(path.stat().st_mode)
    except OSError:
        return True


class Targets:
    """Class indices by the names that people give them.

    A label is found in any case and with underscores for spaces, and so is a
    synonym that a comma separates in it.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._count = len(labels)
        names = [{_plain(label), *map(_plain, label.split(","))} for label in labels]
        times = Counter(chain.from_iterable(names))
        # A label of two classes, such as ImageNet's crane, identifies neither.
        self._by_label = {
            name: index for index, each in enumerate(names) for name in each if times[name] == 1
        }
        self._by_wordnet = {name: index for index, name in enumerate(wordnet_ids(self._count))}

    def find(self, name: str) -> int | None:
        """Return the class of a label, a WordNet id or an index; None where it is none."""
        if (label := _plain(name)) in self._by_label:
            return self._by_label[label]
        if name in self._by_wordnet:
            return self._by_wordnet[name]
        if re.fullmatch(r"\d{1,9}", name) and int(name) < self._count:
            return int(name)
        return None


def wordnet_ids(classes: int) -> tuple[str, ...]:
    """Return the WordNet ids of so many classes where they are ImageNet's 1000, else none."""
    known = _imagenet_synsets()
    return known if classes == len(known) else ()


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").split()).casefold()


@cache
def _imagenet_synsets() -> tuple[str, ...]:
    return tuple((files(__package__) / _SYNSETS).read_text(encoding="ascii").split())
