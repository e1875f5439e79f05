"""Runs one of the subcommands of a command, and says in one line what stands in the way."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from foveate_train import distributed
from foveate_train.errors import (
    ArgumentsError,
    SettingsError,
    TrainError,
    UnknownClassifierError,
)
from foveate_train.options import Command

_FAILED, _WRONG_USAGE = 1, 2


def run(
    program: str,
    description: str,
    example: str,
    commands: Mapping[str, Command[Any]],
    arguments: Sequence[str],
) -> int:
    """Run the subcommand that the arguments name; return the exit code.

    Args:
        program: how the command is called, such as `foveate train`.
        description: stands on top of its help.
        example: the arguments of an example, which ends the help.
        commands: by name.
        arguments: what is typed behind the command.
    """
    parser = argparse.ArgumentParser(
        prog=program, description=description, epilog=f"example: {program} {example}"
    )
    parsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in commands.values():
        command.add_to(parsers)
    values = vars(parser.parse_args(arguments))
    try:
        with distributed.group():
            return commands[values.pop("command")].answer(values)
    except (UnknownClassifierError, ArgumentsError, SettingsError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return _WRONG_USAGE
    except TrainError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return _FAILED
