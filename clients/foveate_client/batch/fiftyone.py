"""Writes a run for FiftyOne: two data sets of its FiftyOneImageClassificationDataset.

A data set of that format has one label a picture. `predictions.json` holds the best class
with its confidence, and `ground_truth.json` the right class where it is known. A key that is
an absolute path stands for the picture at that place, so that no picture is copied.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from foveate_client.batch.journal import Row
from foveate_client.batch.sources import file_of
from foveate_client.batch.tables import Columns, published, text_file

PREDICTIONS, GROUND_TRUTH = "predictions.json", "ground_truth.json"


class _Labels:
    """Writes one file of the format, a picture at a time."""

    def __init__(self, file: TextIO, classes: Sequence[str]) -> None:
        self._file = file
        self._begun = False
        names = json.dumps(list(classes), ensure_ascii=False)
        file.write(f'{{"classes": {names}, "labels": {{')

    def add(self, path: str, label: Any) -> None:
        """Write the label of the picture at `path`."""
        comma = "," if self._begun else ""
        entry = f"{json.dumps(path, ensure_ascii=False)}: {json.dumps(label)}"
        self._file.write(f"{comma}\n{entry}")
        self._begun = True

    def end(self) -> None:
        """Write the end of the file."""
        self._file.write("\n}}\n")


def write_fiftyone(folder: Path, columns: Columns, rows: Iterable[Row], *, scores: str) -> int:
    """Write both files into `folder`, which is made where it is missing.

    `scores` are the model's; a logit is no confidence. Returns how many pictures are left
    out, as they have no file of their own: those of shards and tables. Raises OSError.
    """
    folder.mkdir(exist_ok=True)
    left_out = 0
    with ExitStack() as stack:
        predictions, truths = (
            _Labels(
                stack.enter_context(text_file(stack.enter_context(published(folder / name)))),
                columns.labels,
            )
            for name in (PREDICTIONS, GROUND_TRUTH)
        )
        for row in rows:
            path = file_of(row.name)
            if path is None:
                left_out += 1
                continue
            key, target = str(path), columns.target(row)
            predicted: dict[str, Any] = {"label": int(row.class_ids[0])}
            if scores != "none":
                calibrated = None if row.trust is None else row.trust.confidence
                score = float(row.scores[0])
                predicted["confidence"] = score if calibrated is None else calibrated
            predictions.add(key, predicted)
            if target is not None:
                truths.add(key, target)
        predictions.end()
        truths.end()
    return left_out
