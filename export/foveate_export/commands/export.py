"""`foveate export`: from a classifier to a bundle that a server can load.

A source whose name ends in `.onnx` is exported without torch, and everything else
with it.
"""

from collections.abc import Sequence

from foveate_export.commands._console import run_with_torch
from foveate_export.commands._existing import main as export_file

FLAGS = ("--bgr", "--help", "--json", "--list-layers", "--tensorrt")
"""The options of both parsers that take no value; all others are followed by one."""


def main(arguments: Sequence[str]) -> int:
    """Run `foveate export` and return its exit code."""
    if any(source.endswith(".onnx") for source in sources(arguments)):
        return export_file(arguments)
    return run_with_torch("foveate_export.commands._classifier", arguments, "foveate export")


def sources(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that are no options and no values of one."""
    found = []
    before = ""
    for argument in arguments:
        valued = before.startswith("--") and "=" not in before and not _is_flag(before)
        if not argument.startswith("-") and not valued:
            found.append(argument)
        before = argument
    return found


def _is_flag(option: str) -> bool:
    # argparse takes the beginning of an option for it.
    return any(flag.startswith(option) for flag in FLAGS)
