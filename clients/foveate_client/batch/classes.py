"""Finds the class of a folder's or a record's label."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate_client._exceptions import FoveateError


class LabelsFileError(FoveateError):
    """A file of labels cannot be read, or names a class that the model does not have."""


class Classes:
    """The classes of a model, by their names.

    `labels` are the model's, by class id. A text is looked up, in this order, in
    `names`, which maps to class ids; among the labels, in any case, with underscores
    for spaces, and by their synonyms, which commas separate, unless several classes
    share one; among `wordnet_ids`, by class id; and as a class id.
    """

    def __init__(
        self,
        labels: Sequence[str],
        names: Mapping[str, int] | None = None,
        wordnet_ids: Sequence[str] = (),
    ) -> None:
        self._names = names or {}
        self._wordnet_ids = {name: class_id for class_id, name in enumerate(wordnet_ids)}
        self._count = len(labels)
        self._labels: dict[str, int | None] = {}
        for class_id, label in enumerate(labels):
            for synonym in {_plain(label), *map(_plain, label.split(","))}:
                shared = synonym in self._labels
                self._labels[synonym] = None if shared else class_id

    def find(self, text: str) -> int | None:
        """Return the class id of `text`, or None where it is no class."""
        if text in self._names:
            return self._names[text]
        class_id = self._labels.get(_plain(text))
        if class_id is None:
            class_id = self._wordnet_ids.get(text)
        if class_id is None and text.isascii() and text.isdigit() and int(text) < self._count:
            return int(text)
        return class_id


def read_names(
    path: Path, labels: Sequence[str], wordnet_ids: Sequence[str] = ()
) -> dict[str, int]:
    """Read a CSV file of two columns: a folder's name, and its class by id or by label.

    A first row `folder,class` is a heading. Raises LabelsFileError.
    """
    classes = Classes(labels, wordnet_ids=wordnet_ids)
    names: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            for number, row in enumerate(csv.reader(lines), start=1):
                if not row or (number == 1 and row == ["folder", "class"]):
                    continue
                if len(row) != 2:
                    raise LabelsFileError(
                        f"{path}, line {number}: has {len(row)} columns; "
                        "the limit is 2, folder and class"
                    )
                folder, text = row
                class_id = classes.find(text)
                if class_id is None:
                    raise LabelsFileError(
                        f"{path}, line {number}: {text!r} is no single class of the model"
                    )
                if names.setdefault(folder, class_id) != class_id:
                    raise LabelsFileError(
                        f"{path}, line {number}: {folder!r} stands for another class above"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelsFileError(f"{path}: cannot be read as a CSV file") from error
    return names


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").split()).casefold()
