"""Measures a bundle on pictures that may have several labels each.

Of each label: the average precision over all pictures, ranked by their score for
it,

    AP = sum_n (R_n - R_(n-1)) P_n

with P_n and R_n the precision and recall at the n-th distinct score (as
scikit-learn's average_precision_score, without interpolation), and precision,
recall and F1 = 2 P R / (P + R) where a score of at least a threshold counts as
the label.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.backends.base import Runner
from foveate_runtime.bundle.manifest import IMAGE_INPUT, LOGITS_OUTPUT, Manifest
from foveate_runtime.bundle.scores import score
from foveate_runtime.evaluation.accuracy import prepared_batches
from foveate_runtime.evaluation.labelled import (
    SUFFIXES,
    LabelledError,
    NoPicturesError,
    Targets,
)

TABLE_SUFFIX = ".csv"


@dataclass(frozen=True)
class LabelTable:
    """Pictures, and the labels of each: `present` is bool [pictures, classes]."""

    name: str
    files: tuple[Path, ...]
    present: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return how many pictures there are."""
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[str, Path, int]]:
        """Read each picture when its turn comes; its number is the row of its labels."""
        for number, path in enumerate(self.files):
            yield str(path), path, number


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """What a model scores on one label, which `images` pictures have.

    `average_precision` is None where none has it. All are shares from 0 to 1.
    """

    label: str
    images: int
    average_precision: float | None
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """What a model scores on labelled pictures.

    `mean_average_precision` and `f1`, the mean of the labels', are over the labels
    that some picture has.
    """

    data: str
    images: int
    threshold: float
    mean_average_precision: float
    f1: float
    labels: tuple[LabelScore, ...]


def open_table(path: Path, labels: Sequence[str], limit: int | None = None) -> LabelTable:
    """Read a CSV file with a picture and its labels in each row.

    Args:
        path: its first column holds the picture's path, from the file's own folder.
            The second holds the labels, by name or index, with `;`, `|` or spaces
            between them, and is empty where there are none. Or the heading names a
            label for each further column, which then hold 1 or 0.
        labels: the classifier's labels, by index.
        limit: how many pictures to take, evenly spread over the file; None for all.

    Raises:
        NoPicturesError: the file does not exist, or names no pictures.
        LabelledError: a picture is not there, or a label is none of the model's;
            names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = [(number, row) for number, row in enumerate(csv.reader(lines), 1) if row]
    except FileNotFoundError as error:
        raise NoPicturesError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelledError(f"{path}: cannot be read as a CSV file") from error
    targets = Targets(labels)
    headed = bool(rows) and Path(rows[0][1][0]).suffix.lower() not in SUFFIXES
    heading = rows.pop(0)[1] if headed else []
    columns = _columns(path, heading, targets)
    if not headed and any(len(row) > 2 for _, row in rows):
        raise LabelledError(f"{path}: more than two columns need a heading that names their labels")
    if not rows:
        raise NoPicturesError(f"{path} names no pictures; a row holds a picture and its labels")
    if limit is not None and limit < len(rows):
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    present = np.zeros((len(rows), len(labels)), np.bool_)
    for place, (number, row) in enumerate(rows):
        where = f"{path}, line {number}"
        if not (path.parent / row[0]).is_file():
            raise LabelledError(f"{where}: no picture {row[0]}")
        found = _marked(row[1:], columns, where) if columns else _named(row[1:], targets, where)
        present[place, found] = True
    return LabelTable(path.name, tuple(path.parent / row[0] for _, row in rows), present)


def measure_labels(
    runner: Runner,
    manifest: Manifest,
    table: LabelTable,
    labels: Sequence[str],
    *,
    threshold: float,
    advance: Callable[[int], object] = lambda _: None,
    corrupt: list[str] | None = None,
) -> LabelScores:
    """Classify every picture and compare its scores with its labels.

    Args:
        runner: the variant, loaded.
        manifest: the bundle's.
        table: the pictures; at least one.
        labels: the classifier's labels, by index.
        threshold: the least score that counts as the label.
        advance: called with the number of pictures of each batch.
        corrupt: as in `foveate_runtime.evaluation.accuracy.prepared_batches`.

    Raises:
        LabelledError: a picture cannot be decoded.
        foveate_runtime.backends.base.BackendError: the engine fails.
    """
    batches, numbers = [], []
    for images, places in prepared_batches(table, manifest.input, corrupt):
        numbers.append(places)
        batches.append(runner.run({IMAGE_INPUT: images}, [LOGITS_OUTPUT])[LOGITS_OUTPUT])
        advance(len(images))
    logits, present = np.concatenate(batches), table.present[np.concatenate(numbers)]
    # Not by the scores, which are equal where they round to 1.
    found = score(logits, manifest.scores) >= threshold
    scored = tuple(
        _label_score(labels[c], logits[:, c], found[:, c], present[:, c])
        for c in range(len(labels))
    )
    seen = [each for each in scored if each.images]
    return LabelScores(
        data=table.name,
        images=len(present),
        threshold=threshold,
        mean_average_precision=_mean([each.average_precision or 0.0 for each in seen]),
        f1=_mean([each.f1 for each in seen]),
        labels=scored,
    )


def average_precision(scores: NDArray[Any], present: NDArray[np.bool_]) -> float:
    """Return the average precision of `scores` [n]; at least one of `present` [n] is true."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # The last of each run of equal scores: those of one score count together.
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(present[order])[ends]
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((gained * hits / (ends + 1)).sum())


def _columns(path: Path, heading: Sequence[str], targets: Targets) -> list[int]:
    """Return the class of each column but the first; none where one column holds the labels."""
    classes = [targets.find(name.strip()) for name in heading[1:]]
    known = [found for found in classes if found is not None]
    if known and len(known) < len(classes):
        others = [name for name, found in zip(heading[1:], classes, strict=True) if found is None]
        raise LabelledError(
            f"{path}: its heading names {', '.join(others)}, no labels of the model"
        )
    return known


def _marked(cells: Sequence[str], columns: Sequence[int], where: str) -> list[int]:
    """Return the classes whose columns hold a 1."""
    marks = [cell.strip() for cell in cells]
    if len(marks) != len(columns) or not {"0", "1"}.issuperset(marks):
        raise LabelledError(f"{where}: {len(columns)} columns of 0 or 1 are expected")
    return [found for mark, found in zip(marks, columns, strict=True) if mark == "1"]


def _named(cells: Sequence[str], targets: Targets, where: str) -> list[int]:
    """Return the classes that the first cell names."""
    text = cells[0].strip() if cells else ""
    names = re.split(r"[;|]", text)
    if len(names) == 1 and targets.find(text) is None:
        names = text.split()
    classes = []
    for name in filter(None, map(str.strip, names)):
        found = targets.find(name)
        if found is None:
            raise LabelledError(f"{where}: {name!r} is no label of the model")
        classes.append(found)
    return classes


def _label_score(
    label: str, logits: NDArray[Any], found: NDArray[np.bool_], present: NDArray[np.bool_]
) -> LabelScore:
    right, images = int((found & present).sum()), int(present.sum())
    counted = int(found.sum())
    return LabelScore(
        label=label,
        images=images,
        average_precision=average_precision(logits, present) if images else None,
        precision=right / counted if counted else 0.0,
        recall=right / images if images else 0.0,
        f1=2 * right / (counted + images) if counted + images else 0.0,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
