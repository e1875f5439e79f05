"""Reads Parquet by pyarrow, which is imported at its first use."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foveate_client._exceptions import MissingDistributionError

REQUIREMENT = "foveate-client[batch]"

_ROWS = 32
"""Pictures read from a table at one time."""


class TableError(Exception):
    """A Parquet table is not one of pictures."""


def pyarrow() -> Any:
    """Import and return pyarrow with its Parquet module.

    Raises MissingDistributionError where it is not installed.
    """
    try:
        import pyarrow as module  # noqa: PLC0415 - an extra of this distribution
        import pyarrow.parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingDistributionError("a Parquet file", REQUIREMENT) from error
    return module


def read_pictures(
    path: Path, image_column: str | None, label_column: str | None
) -> Iterator[tuple[bytes, str | None]]:
    """Yield the encoded picture and the label of each row, as batch.sources.Table describes.

    Raises TableError where a column is missing or holds something else, and
    OSError where the file cannot be read.
    """
    pa = pyarrow()
    try:
        with pa.parquet.ParquetFile(path) as table:
            schema = table.schema_arrow
            image = _image_column(pa, schema, image_column)
            label = _label_column(schema, label_column)
            columns = [image] if label is None else [image, label]
            for batch in table.iter_batches(_ROWS, columns=columns):
                images = batch.column(image)
                if pa.types.is_struct(images.type):
                    images = images.field("bytes")
                labels = [None] * len(images) if label is None else batch.column(label).to_pylist()
                for picture, text in zip(images.to_pylist(), labels, strict=True):
                    yield picture or b"", None if text is None else str(text)
    except pa.ArrowInvalid as error:
        raise TableError(f"is no Parquet file that can be read: {error}") from error


def count_rows(path: Path) -> int:
    """Return the number of rows. Raises TableError and OSError."""
    pa = pyarrow()
    try:
        return int(pa.parquet.read_metadata(path).num_rows)
    except pa.ArrowInvalid as error:
        raise TableError(f"is no Parquet file that can be read: {error}") from error


def _image_column(pa: Any, schema: Any, wanted: str | None) -> str:
    columns = [field.name for field in schema if _holds_pictures(pa, field.type)]
    if wanted is not None:
        if wanted not in schema.names:
            raise TableError(f"has no column {wanted!r}; it has {', '.join(schema.names)}")
        if wanted not in columns:
            raise TableError(f"the column {wanted!r} is {schema.field(wanted).type}, not bytes")
        return wanted
    if len(columns) != 1:
        raise TableError(
            f"name the column of the pictures by --image-column; of bytes are: "
            f"{', '.join(columns) or 'none'}"
        )
    return str(columns[0])


def _label_column(schema: Any, wanted: str | None) -> str | None:
    if wanted is None:
        return "label" if "label" in schema.names else None
    if wanted not in schema.names:
        raise TableError(f"has no column {wanted!r}; it has {', '.join(schema.names)}")
    return wanted


def _holds_pictures(pa: Any, kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(pa, field.type) for field in kind)
    return _is_bytes(pa, kind)


def _is_bytes(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
