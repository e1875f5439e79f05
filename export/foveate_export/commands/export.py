"""`foveate export`: from a classifier to a bundle that a server can load.

A source that is a file whose name ends in `.onnx` is exported without torch, and
everything else with it.
"""

from collections.abc import Sequence
from pathlib import Path

from foveate_export.commands._console import run_with_torch
from foveate_export.commands._existing import main as export_file

FLAGS = ("--bgr", "--help", "--json", "--list-layers", "--no-cams", "--tensorrt")
"""The options of both parsers that take no value."""


def main(arguments: Sequence[str]) -> int:
    """Run `foveate export` and return its exit code."""
    source = Path(find_source(arguments) or "")
    if source.suffix.lower() == ".onnx" and not source.is_dir():
        return export_file(arguments)
    return run_with_torch("foveate_export.commands._classifier", arguments, "foveate export")


def find_source(arguments: Sequence[str]) -> str | None:
    """Return the argument that is neither an option nor an option's value."""
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return next(rest, None)
        if not argument.startswith("-"):
            return argument
        # An option may be abbreviated, and bring its value behind a sign of equality.
        if argument != "-h" and "=" not in argument and not _is_flag(argument):
            next(rest, None)
    return None


def _is_flag(option: str) -> bool:
    return any(flag.startswith(option) for flag in FLAGS)
