"""The finished files: results as Parquet, CSV or JSON Lines, errors as JSON Lines.

A file appears whole or not at all: it is written under another name, synced to the
disk, and renamed.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from foveate_client.batch.arrow import pyarrow
from foveate_client.batch.classes import Classes
from foveate_client.batch.journal import Failure, Row

SUFFIXES = (".parquet", ".csv", ".jsonl")

TRUST = ("confidence", "prediction_set", "ood_percentile", "abstained")
"""The columns of how far an answer can be believed. `confidence` is that of the best class;
the set is a list of classes, in CSV with spaces between them."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""The characters with which a formula begins in a spreadsheet."""

_ROWS = 4096
_BYTES = 32 * 2**20
"""A Parquet row group is written when it holds this much of either."""


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A column of float32 arrays of one shape.

    An embedding is [C], a feature map [C, h, w], and probabilities are [classes].
    """

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table of results.

    `image` is the picture's name, `target` its right class and `target_label` the
    label of that, and `correct` whether the best class is it; they are null where it
    is unknown. `class_1`, `label_1` and `score_1` are the best class and its
    score, and so on to `top_k`, those whose score is below `threshold` left empty;
    the vectors follow, and `cam`, the overlay's file, where overlays were drawn. With
    `trust` there are the columns of `TRUST` before them.
    """

    top_k: int
    threshold: float | None = None
    labels: Sequence[str]
    classes: Classes
    vectors: Sequence[Vector] = ()
    cam: bool = False
    trust: bool = False
    provenance: str = ""
    """The versions and options that made the table, as JSON."""

    @property
    def ranks(self) -> range:
        """The ranks, from 1."""
        return range(1, self.top_k + 1)

    def reached(self, row: Row) -> int:
        """Return how many of the classes of a row are written."""
        if self.threshold is None:
            return self.top_k
        return min(self.top_k, int((row.scores >= self.threshold).sum()))

    def target(self, row: Row) -> int | None:
        """Return the right class, or None where the label is that of no class."""
        return None if row.label is None else self.classes.find(row.label)

    def scalars(self, row: Row) -> dict[str, Any]:
        """Return the columns before the vectors."""
        target = self.target(row)
        values: dict[str, Any] = {
            "image": row.name,
            "target": target,
            "target_label": None if target is None else self.labels[target],
            "correct": None if target is None else bool(row.class_ids[0] == target),
        }
        best = zip(self.ranks, row.class_ids.tolist(), row.scores.tolist(), strict=False)
        for rank, class_id, score in islice(best, self.reached(row)):
            values[f"class_{rank}"] = class_id
            values[f"label_{rank}"] = self.labels[class_id]
            values[f"score_{rank}"] = score
        if row.trust is not None:
            known = row.trust
            values["confidence"] = known.confidence
            values["prediction_set"] = list(known.prediction_set)
            values["ood_percentile"] = known.ood_percentile
            values["abstained"] = known.abstained
        return values

    def arrays(self, row: Row) -> dict[str, npt.NDArray[np.float32]]:
        """Return the vectors."""
        arrays, start = {}, 0
        for vector in self.vectors:
            end = start + prod(vector.shape)
            arrays[vector.name] = row.vectors[start:end].reshape(vector.shape)
            start = end
        return arrays

    def extras(self, row: Row) -> dict[str, Any]:
        """Return the columns after the vectors."""
        return {"cam": row.cam} if self.cam else {}


def write_results(path: Path, columns: Columns, rows: Iterable[Row]) -> None:
    """Write `rows` to `path` in the format of its suffix, one of SUFFIXES.

    Raises MissingDistributionError where a Parquet file is asked for without
    pyarrow, and OSError.
    """
    write = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}[path.suffix]
    with published(path) as part:
        write(part, columns, rows)


def write_errors(path: Path, failures: Iterable[Failure]) -> None:
    """Write `failures` as JSON Lines: image, code, reason and message."""
    with published(path) as part, text_file(part) as lines:
        for failure in failures:
            _print(
                lines,
                {
                    "image": failure.name,
                    "code": failure.code,
                    "reason": failure.reason,
                    "message": failure.message,
                },
            )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`."""
    with published(path) as part:
        part.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`."""
    with published(path) as part:
        part.write_bytes(content)


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which is synced and renamed to `path` at the end."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        _sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def text_file(path: Path) -> TextIO:
    """Open a file for text whose ends of lines stay as they are written."""
    return path.open("w", encoding="utf-8", newline="")


def _write_csv(path: Path, columns: Columns, rows: Iterable[Row]) -> None:
    with text_file(path) as file:
        names = ["image", "target", "target_label", "correct"]
        for rank in columns.ranks:
            names += [f"class_{rank}", f"label_{rank}", f"score_{rank}"]
        names += [*(TRUST if columns.trust else ()), *(["cam"] if columns.cam else [])]
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for row in rows:
            values = columns.scalars(row) | columns.extras(row)
            if "prediction_set" in values:
                values["prediction_set"] = " ".join(map(str, values["prediction_set"]))
            writer.writerow({name: _cell(value) for name, value in values.items()})


def _cell(value: object) -> object:
    """Return a value for CSV: a spreadsheet would run a text as a formula, but for its quote."""
    if isinstance(value, str) and len(value) > 1 and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _write_jsonl(path: Path, columns: Columns, rows: Iterable[Row]) -> None:
    with text_file(path) as file:
        for row in rows:
            arrays = {name: array.tolist() for name, array in columns.arrays(row).items()}
            _print(file, columns.scalars(row) | arrays | columns.extras(row))


def _print(file: TextIO, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, columns: Columns, rows: Iterable[Row]) -> None:
    pa = pyarrow()
    schema = _schema(pa, columns)
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(rows):
            writer.write_batch(_record_batch(pa, schema, columns, group))


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    group: list[Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += row.vectors.nbytes
        if len(group) >= _ROWS or size >= _BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _schema(pa: Any, columns: Columns) -> Any:
    fields = [
        pa.field("image", pa.string(), nullable=False),
        pa.field("target", pa.int32()),
        pa.field("target_label", pa.string()),
        pa.field("correct", pa.bool_()),
    ]
    for rank in columns.ranks:
        fields += [
            pa.field(f"class_{rank}", pa.int32()),
            pa.field(f"label_{rank}", pa.string()),
            pa.field(f"score_{rank}", pa.float32()),
        ]
    if columns.trust:
        types = (pa.float64(), pa.list_(pa.int32()), pa.float64(), pa.bool_())
        fields += map(pa.field, TRUST, types)
    fields += [pa.field(vector.name, _vector_type(pa, vector)) for vector in columns.vectors]
    if columns.cam:
        fields.append(pa.field("cam", pa.string()))
    return pa.schema(
        fields, {"foveate": columns.provenance, "pandas": json.dumps(_pandas(pa, fields))}
    )


def _pandas(pa: Any, fields: Sequence[Any]) -> dict[str, Any]:
    """Return pandas' own metadata, which keeps the types of integers and booleans with nulls."""
    kinds = {pa.int32(): "Int32", pa.bool_(): "boolean"}
    return {
        "index_columns": [],
        "column_indexes": [],
        "columns": [
            {
                "name": field.name,
                "field_name": field.name,
                "pandas_type": str(field.type),
                "numpy_type": kinds[field.type],
                "metadata": None,
            }
            for field in fields
            if field.type in kinds
        ],
    }


def _vector_type(pa: Any, vector: Vector) -> Any:
    if len(vector.shape) == 1:
        return pa.list_(pa.float32(), vector.shape[0])
    # A fixed-size list as well, whose type holds the shape.
    return pa.fixed_shape_tensor(pa.float32(), vector.shape)


def _record_batch(pa: Any, schema: Any, columns: Columns, rows: Sequence[Row]) -> Any:
    arrays: dict[str, list[Any]] = {vector.name: [] for vector in columns.vectors}
    scalars = []
    for row in rows:
        scalars.append(columns.scalars(row) | columns.extras(row))
        for name, array in columns.arrays(row).items():
            arrays[name].append(array)
    built = []
    for field in schema:
        if field.name not in arrays:
            built.append(pa.array([values.get(field.name) for values in scalars], field.type))
            continue
        stacked = np.stack(arrays[field.name])
        if stacked.ndim == 2:
            flat = pa.array(stacked.ravel(), pa.float32())
            built.append(pa.FixedSizeListArray.from_arrays(flat, stacked.shape[1]))
        else:
            built.append(pa.FixedShapeTensorArray.from_numpy_ndarray(stacked))
    return pa.record_batch(built, schema=schema)
