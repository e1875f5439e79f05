"""What subcommands share: argument types, progress on stderr, errors as exit codes."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from foveate_runtime.backends.base import BackendError
from foveate_runtime.bundle.bundle import BundleError
from foveate_runtime.bundle.publishing import PlaceError, RepositoryError
from foveate_runtime.evaluation.labelled import LabelledError, NoPicturesError, TooFewPicturesError
from foveate_runtime.remote.location import LocationError
from foveate_runtime.remote.store import Progress as Transfer
from foveate_runtime.remote.store import RemoteError

DONE, FAILED, WRONG_USAGE = 0, 1, 2


class UsageError(Exception):
    """Options that contradict each other; the message names them."""


_USAGE: tuple[type[Exception], ...] = (
    UsageError,
    LocationError,
    NoPicturesError,
    TooFewPicturesError,
    PlaceError,
)
_FAILURES: tuple[type[Exception], ...] = (
    BundleError,
    RepositoryError,
    RemoteError,
    BackendError,
    LabelledError,
    OSError,
)


@contextmanager
def transfer(console: Console) -> Iterator[Transfer]:
    """Show how much of each bundle is copied, on a terminal; yield what takes the counts."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield show


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


def answer(
    command: Callable[[], int],
    prog: str,
    *,
    usage: tuple[type[Exception], ...] = (),
    failures: tuple[type[Exception], ...] = (),
) -> int:
    """Run a subcommand and turn what goes wrong into a line on stderr and an exit code.

    A termination signal or a hang-up ends the command as Ctrl-C does, so that it
    cleans up.

    Args:
        command: returns the exit code.
        prog: the command's name, as typed.
        usage: errors that mean wrong usage, beside those of this distribution.
        failures: errors that mean failure, likewise.
    """
    previous = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP)
        # What nohup ignores stays ignored.
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        return command()
    except _USAGE + usage as error:
        return say(prog, error, WRONG_USAGE)
    except BrokenPipeError:
        # The reader of stdout has closed it; the command line handles that.
        raise
    except _FAILURES + failures as error:
        return say(prog, error, FAILED)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def warn(prog: str, text: str) -> None:
    """Print a warning of the command `prog` on stderr; nothing where `text` is empty."""
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


def coverages(text: str) -> tuple[float, ...]:
    """Read an argument that is a list of coverages, each above 0 and below 1."""
    found = tuple(float(part) for part in names(text))
    if not found:
        raise argparse.ArgumentTypeError("no coverage is named")
    for coverage in found:
        if not 0 < coverage < 1:
            raise argparse.ArgumentTypeError(f"{coverage:g} is not above 0 and below 1")
    return found


def names(text: str) -> tuple[str, ...]:
    """Read an argument that is a list of names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def say(prog: str, error: object, code: int) -> int:
    """Print an error as a line of the command `prog` on stderr and return the exit code."""
    print(f"{prog}: {error}", file=sys.stderr)
    return code
