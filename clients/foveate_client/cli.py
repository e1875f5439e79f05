"""The `foveate` command: finds a subcommand, of any distribution, and runs it.

A subcommand is an entry point of the group `foveate.commands`: a function
`main(arguments: Sequence[str]) -> int` that returns 0 when done, 1 for a failure and 2
for wrong usage.
"""

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import NamedTuple, cast

from foveate_client import _plugins
from foveate_client._exceptions import MissingDistributionError, os_reason, pip_line

COMMANDS = "foveate.commands"
"""The entry point group of subcommands."""

_INTERRUPTED = 130
"""The exit code that shells use for a program that Ctrl-C ended."""


class _Command(NamedTuple):
    requirement: str
    summary: str

    @property
    def installed(self) -> bool:
        return _version(self.requirement.partition("[")[0]) is not None


_CLIENT, _RUNTIME, _REMOTE, _SERVE, _EXPORT, _TRAIN, _BENCH, _WEB = (
    "foveate-client",
    "foveate-runtime[cpu]",
    "foveate-runtime[remote]",
    "foveate-serve[cpu]",
    "foveate-export",
    "foveate-train",
    "foveate-bench",
    "foveate-web",
)

# Known even where they are not installed, so that the error can name the pip line.
_KNOWN = {
    "train": _Command(_TRAIN, "train a classifier"),
    "visualize": _Command(_TRAIN, "draw what a classifier computes"),
    "export": _Command(_EXPORT, "make a bundle of a classifier"),
    "engines": _Command(_EXPORT, "build TensorRT engines of a bundle's graphs"),
    "triton": _Command(_EXPORT, "make a bundle a model of NVIDIA Triton"),
    "calibrate": _Command(_RUNTIME, "find how far a bundle's answers can be believed"),
    "card": _Command(_RUNTIME, "write a model card of a bundle"),
    "evaluate": _Command(_RUNTIME, "measure a bundle's accuracy on labelled pictures"),
    "serve": _Command(_SERVE, "serve a repository of bundles over gRPC"),
    "verify": _Command(_RUNTIME, "compare a bundle with the answers kept in it"),
    "push": _Command(_REMOTE, "copy a bundle to a bucket, a hub or a registry"),
    "pull": _Command(_REMOTE, "copy bundles out of a bucket, a hub or a registry"),
    "bench": _Command(_BENCH, "compare backends and variants"),
    "classify": _Command(_CLIENT, "classify pictures and show what was looked at"),
    "health": _Command(_CLIENT, "ask a server whether it serves"),
    "models": _Command(_CLIENT, "list the models of a server or a repository"),
    "web": _Command(_WEB, "show what a server's classifiers see, as a page"),
    "batch": _Command(_CLIENT, "classify a folder of pictures into a table"),
    "load": _Command(_CLIENT, "put a server under load and measure it"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("foveate: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe; the interpreter's flush at exit must not fail on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # Not caught by the command, such as when a library is imported and finds no folder for
        # temporary files.
        print(f"foveate {arguments[0]}: {os_reason(error)}", file=sys.stderr)
        return 1
    return code


def _run(arguments: Sequence[str]) -> int:
    if not arguments:
        print(_help(), file=sys.stderr)
        return 2
    name, *rest = arguments
    if name in {"-h", "--help"}:
        print(_help())
        return 0
    if name == "--version":
        print(_versions())
        return 0
    point = _plugins.find(COMMANDS, name)
    if point is not None:
        return cast("Callable[[Sequence[str]], int]", point.load())(rest)
    known = _KNOWN.get(name)
    if known is not None and not known.installed:
        error = MissingDistributionError(f"foveate {name}", known.requirement)
        print(f"foveate: {error}", file=sys.stderr)
        return 1
    print(f"foveate: {_unknown(name)}", file=sys.stderr)
    return 2


def _help() -> str:
    available = entry_points(group=COMMANDS).names
    lines = [
        "usage: foveate COMMAND ...",
        "",
        "Classifies pictures and shows where the classifier looked.",
        "",
        "commands:",
        *(
            f"  {name:<11}{_KNOWN[name].summary if name in _KNOWN else ''}".rstrip()
            for name in [*(n for n in _KNOWN if n in available), *sorted(available - _KNOWN.keys())]
        ),
    ]
    missing = {n: c for n, c in _KNOWN.items() if n not in available and not c.installed}
    if missing:
        lines += [
            "",
            "not installed:",
            *(
                f"  {name:<11}{command.summary} ({pip_line(command.requirement)})"
                for name, command in missing.items()
            ),
        ]
    lines += [
        "",
        "foveate COMMAND --help tells what a command takes; foveate --version, what is installed.",
    ]
    return "\n".join(lines)


def _unknown(name: str) -> str:
    names = sorted({*entry_points(group=COMMANDS).names})
    near = get_close_matches(name, names) or names
    return f"there is no command {name!r}; did you mean {_alternatives(near)}?"


def _alternatives(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _versions() -> str:
    names = ["foveate-proto", *(c.requirement.partition("[")[0] for c in _KNOWN.values())]
    found = {name: _version(name) for name in sorted(names)}
    return "\n".join(f"{name} {number}" for name, number in found.items() if number is not None)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
