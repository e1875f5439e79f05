"""`foveate visualize`: draw what a classifier computes."""

from collections.abc import Sequence
from typing import Any

from foveate_train.commands import running
from foveate_train.options import Command
from foveate_train.visualize import (
    arithmetic,
    cam,
    dream,
    embed,
    features,
    fool,
    maximise,
    receptive,
    style,
)

COMMANDS: dict[str, Command[Any]] = {
    each.COMMAND.name: each.COMMAND
    for each in (features, cam, maximise, dream, style, embed, receptive, fool, arithmetic)
}


def main(arguments: Sequence[str]) -> int:
    """Run `foveate visualize ...` and return its exit code."""
    return running.run(
        "foveate visualize",
        "Draw what a classifier computes, as PNG and as arrays.",
        "features package:efficientnet_lite0 cat.jpg --out features",
        COMMANDS,
        arguments,
    )
