"""What the subcommands have in common: where the models are, and how failure is told."""

import argparse
import sys
from pathlib import Path

from foveate_client._client import DEFAULT_TIMEOUT, Client
from foveate_client._exceptions import CallError, FoveateError


def add_source_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the choice between a server and a repository, and the deadline of a call."""
    source = parser.add_mutually_exclusive_group(required=required)
    source.add_argument("--address", metavar="HOST:PORT", help="the server to ask")
    source.add_argument(
        "--repository", metavar="DIR", type=Path, help="the bundles to run in this process"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=DEFAULT_TIMEOUT,
        help="the longest wait for an answer (default: %(default)g)",
    )


def open_client(arguments: argparse.Namespace) -> Client:
    """Return the client of the source that was chosen. Raises FoveateError."""
    if arguments.address is not None:
        return Client(arguments.address, timeout=arguments.timeout)
    return Client.local(arguments.repository, timeout=arguments.timeout)


def describe(error: FoveateError) -> str:
    """Return what a person is told of `error`: the message, and the fields at fault."""
    lines = [str(error)]
    if isinstance(error, CallError):
        lines += [
            f"{violation.field}: {violation.description}"
            for violation in error.field_violations
            if violation.description not in lines[0]
        ]
        if error.retry_delay is not None:
            lines.append(f"try again in {error.retry_delay.total_seconds():g} s")
    return "; ".join(lines)


def complain(parser: argparse.ArgumentParser, message: str) -> None:
    """Tell a person on stderr that something failed."""
    print(f"{parser.prog}: {message}", file=sys.stderr)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0 seconds, not {text}")
    return seconds
