"""`foveate bench`: which backend, which precision, which batch, measured."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

PROG = "foveate bench"
FAILED = 1

_EXTRA = ("markdown_it", "matplotlib", "onnx", "psutil", "rich")
"""What the extra `bench` brings."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    try:
        command: Callable[[Sequence[str]], int] = import_module("foveate_serve.bench.command").main
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        print(f'{PROG} needs {package}: pip install "foveate-serve[bench]"', file=sys.stderr)
        return FAILED
    return command(arguments)
