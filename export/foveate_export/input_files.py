"""Reads the files that say what a network does not: its input and its labels."""

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from foveate_export.errors import UsageError

SpecT = TypeVar("SpecT")


def read_input_spec(path: Path, kind: type[SpecT]) -> SpecT:
    """Read an input specification, of the class `kind`, from a JSON file; raises UsageError."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise UsageError(f"{path}: {faults}") from error


def read_labels(path: Path) -> tuple[str, ...]:
    """Read one label a line, UTF-8; raises UsageError."""
    try:
        labels = tuple(path.read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text") from error
    if not labels:
        raise UsageError(f"{path}: holds no labels")
    return labels
