"""`foveate evaluate`: the accuracy of a bundle, measured with the pieces that serve it."""

from collections.abc import Sequence

from foveate_export.commands._console import run_with_torch


def main(arguments: Sequence[str]) -> int:
    """Run `foveate evaluate` and return its exit code."""
    return run_with_torch("foveate_export.commands._evaluate", arguments, "foveate evaluate")
