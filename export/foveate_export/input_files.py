"""Reads the files that say what a network does not: its input and its labels."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from foveate_export.errors import UsageError
from foveate_runtime.bundle.manifest import InputSpec, faults


def read_input_spec(path: Path) -> InputSpec:
    """Read an input specification from a JSON file; raises UsageError."""
    try:
        return InputSpec.model_validate_json(_text(path))
    except ValidationError as error:
        raise UsageError(f"{path}: {faults(error)}") from error


def read_labels(path: Path) -> tuple[str, ...]:
    """Read one label a line, UTF-8; raises UsageError.

    Blanks around a label and empty lines at the end are passed over.
    """
    lines = _text(path).rstrip().split("\n")
    if lines == [""]:
        raise UsageError(f"{path}: holds no labels")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UsageError(f"{path}: line {number} is empty; each line is the label of one class")
        for sign in line.strip(" "):
            # Controls, among them the tabulator, and what other programs take for ends of lines.
            if unicodedata.category(sign) in ("Cc", "Zl", "Zp") or sign == "\ufeff":
                raise UsageError(
                    f"{path}: line {number} holds the character U+{ord(sign):04X}; "
                    "each line is the label of one class, and nothing else"
                )
    return tuple(line.strip() for line in lines)


def repeated(labels: Sequence[str]) -> str:
    """Say which labels name several classes; empty where none does."""
    classes: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        classes.setdefault(label, []).append(index)
    named = [
        f"{label!r} names the classes {', '.join(map(str, indices))}"
        for label, indices in classes.items()
        if len(indices) > 1
    ]
    return "; ".join(named)


def _text(path: Path) -> str:
    """Read UTF-8, with or without the mark that Windows puts before it; raises UsageError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text; save it as UTF-8") from error
