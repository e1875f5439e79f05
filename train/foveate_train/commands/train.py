"""`foveate train`: train a classifier and write a checkpoint."""

from collections.abc import Sequence
from typing import Any

from foveate_train.commands import finetune, mnist, running, study
from foveate_train.options import Command

COMMANDS: dict[str, Command[Any]] = {
    each.COMMAND.name: each.COMMAND for each in (mnist, finetune, study)
}


def main(arguments: Sequence[str]) -> int:
    """Run `foveate train ...` and return its exit code."""
    example = "mnist --epochs 1 --out checkpoint"
    return running.run("foveate train", "Train a classifier.", example, COMMANDS, arguments)
