"""`foveate train`: train a classifier and write a checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from foveate_train import distributed
from foveate_train.commands import finetune, mnist, study
from foveate_train.commands.options import Command
from foveate_train.errors import (
    ArgumentsError,
    SettingsError,
    TrainError,
    UnknownClassifierError,
)

COMMANDS: dict[str, Command[Any]] = {
    each.COMMAND.name: each.COMMAND for each in (mnist, finetune, study)
}
_FAILED, _WRONG_USAGE = 1, 2


def main(arguments: Sequence[str]) -> int:
    """Run `foveate train ...` and return its exit code."""
    parser = argparse.ArgumentParser(prog="foveate train", description="Train a classifier.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in COMMANDS.values():
        command.add_to(commands)
    values = vars(parser.parse_args(arguments))
    try:
        with distributed.group():
            return COMMANDS[values.pop("command")].answer(values)
    except (UnknownClassifierError, ArgumentsError, SettingsError) as error:
        print(f"foveate train: {error}", file=sys.stderr)
        return _WRONG_USAGE
    except TrainError as error:
        print(f"foveate train: {error}", file=sys.stderr)
        return _FAILED
