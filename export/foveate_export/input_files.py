"""Reads the files that say what a network does not: its input and its labels."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
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
    """Read one label a line, UTF-8, or the labels in a .json file; raises UsageError.

    Blanks around a label and empty lines at the end are passed over. JSON is a list of
    labels or a table between labels and numbers, in either direction.
    """
    text = _text(path)
    if path.suffix == ".json":
        return _of_json(path, text)
    lines = text.rstrip().split("\n")
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
    _refuse_numbered(path, lines)
    return tuple(line.strip() for line in lines)


def _of_json(path: Path, text: str) -> tuple[str, ...]:
    try:
        held = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path}: no JSON ({error})") from error
    if isinstance(held, Mapping) and isinstance(held.get("id2label"), Mapping):
        held = held["id2label"]
    if isinstance(held, Mapping):
        pairs = held.items()
        numbered = {str(key): name for key, name in pairs if isinstance(name, str)} or {
            str(index): key for key, index in pairs
        }
        wanted = list(map(str, range(len(held))))
        if len(held) != len(numbered) or sorted(numbered) != sorted(wanted):
            raise UsageError(
                f"{path}: its classes are not numbered from 0 to {len(held) - 1} as the outputs"
            )
        held = [numbered[index] for index in wanted]
    if not isinstance(held, list) or not held or not all(_is_label(each) for each in held):
        raise UsageError(
            f"{path}: is neither a list of labels nor a table between labels and numbers"
        )
    return tuple(each.strip() for each in held)


def _is_label(value: object) -> bool:
    """Whether a value is a text that can stand in a line of labels.txt."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and not any(unicodedata.category(sign) in ("Cc", "Zl", "Zp") for sign in value)
    )


def _refuse_numbered(path: Path, lines: Sequence[str]) -> None:
    """Raise UsageError where lines hold the numbers of the classes beside the labels."""
    cells = [re.fullmatch(r"(\d+)\s*([,;:.) ])\s*(\S.*)", line.strip()) for line in lines]
    # The first line may be a heading.
    rows = [cell for cell in cells[0 if cells[0] else 1 :] if cell]
    numbers = [int(row[1]) for row in rows]
    first = min(numbers, default=-1)
    complete = first in (0, 1) and sorted(numbers) == list(range(first, first + len(rows)))
    # 1 euro and 2 euro are labels.
    if len(rows) > 1 and complete and len({row[3] for row in rows}) == len(rows) >= len(lines) - 1:
        raise UsageError(
            f"{path}: numbers stand before the labels, as in {lines[-1].strip()!r}; each line is "
            "the label of one class, in the outputs' order: leave out the numbers and a heading"
        )


def repeated(labels: Sequence[str]) -> str:
    """Return the labels that name several classes; empty where none does."""
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
