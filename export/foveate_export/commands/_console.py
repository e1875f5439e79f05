"""What the subcommands share: progress on stderr, errors as exit codes."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import get_args

from rich.console import Console

from foveate_export.errors import ExportError, UsageError
from foveate_serve.backends.base import BackendError
from foveate_serve.bundle.bundle import BundleError
from foveate_serve.bundle.manifest import Scores
from foveate_serve.evaluation.labelled import LabelledError, NoPicturesError

DONE, FAILED, WRONG_USAGE = 0, 1, 2

_TRAINING = ("foveate_train", "torch", "torchvision", "timm")
"""What the extra `torch` brings."""


class Stages:
    """Shows the step in progress on stderr, and a line with its time when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def __call__(self, text: str) -> Iterator[None]:
        """Show `text` while the context lasts."""
        start = time.monotonic()
        with self._console.status(f"{text} ..."):
            yield
        self._console.print(f"{text}: {time.monotonic() - start:.1f} s", highlight=False)


def answer(command: Callable[[], int], prog: str) -> int:
    """Run a subcommand and turn what goes wrong into a line on stderr and an exit code.

    A termination signal ends the command as Ctrl-C does, so that it cleans up.
    """
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command()
    except (UsageError, NoPicturesError) as error:
        return _say(prog, error, WRONG_USAGE)
    except BrokenPipeError:
        # The reader of stdout has left, which is the command line's to answer.
        raise
    except (ExportError, BundleError, BackendError, LabelledError, OSError) as error:
        return _say(prog, error, FAILED)
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_with_torch(module: str, arguments: Sequence[str], prog: str) -> int:
    """Run the `main` of a module that the extra `torch` is for, or print its pip line."""
    try:
        main: Callable[[Sequence[str]], int] = import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _TRAINING:
            raise
        needs = 'this needs PyTorch: pip install "foveate-export[torch]"'
        return _say(prog, needs, FAILED)
    return main(arguments)


def add_scores_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that says what makes scores of a network's logits."""
    parser.add_argument(
        "--scores",
        choices=get_args(Scores),
        help="what makes scores of the logits: softmax, for classes that exclude each other; "
        "sigmoid, for labels of which a picture may have several; none, to serve the outputs as "
        "they are; default: what the network's end and its outputs say",
    )


def warn(prog: str, text: str) -> None:
    """Print a line on stderr where there is something to say."""
    if text:
        print(f"{prog}: warning: {text}", file=sys.stderr)


def positive(text: str) -> int:
    """Read an argument that is a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def points(text: str) -> float:
    """Read an argument that is a number of points, of 0 to 100."""
    number = float(text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 100")
    return number


def names(text: str) -> list[str]:
    """Read an argument that is a list of names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _say(prog: str, error: object, code: int) -> int:
    print(f"{prog}: {error}", file=sys.stderr)
    return code
