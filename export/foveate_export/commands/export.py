"""`foveate export`: from a classifier to a bundle that a server can load.

A file whose name ends in `.onnx` is exported without torch, and everything else
with it.
"""

from collections.abc import Sequence

from foveate_export.commands._console import run_with_torch
from foveate_export.commands._existing import main as export_file


def main(arguments: Sequence[str]) -> int:
    """Run `foveate export` and return its exit code."""
    if any(argument.endswith(".onnx") for argument in arguments):
        return export_file(arguments)
    return run_with_torch("foveate_export.commands._classifier", arguments, "foveate export")
