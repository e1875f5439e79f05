"""`foveate train study`: repeat a study of the course, and write its page."""

import argparse
from pathlib import Path

from rich.console import Console

from foveate_train.commands.interruption import interruption
from foveate_train.commands.options import add_machine, use_machine
from foveate_train.errors import SettingsError
from foveate_train.settings import settings
from foveate_train.studies import STUDIES
from foveate_train.studies.options import Options


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand's parser; its options carry `run`."""
    parser = commands.add_parser(
        "study",
        help="repeat a study of the course on MNIST, and write its page",
        description="Repeat a study on MNIST. After Ctrl-C the same command goes on from there.",
    )
    add = parser.add_argument
    add("study", choices=sorted(STUDIES), help="which one")
    add("--out", type=Path, metavar="DIR", help="default: studies/NAME")
    add("--epochs", type=int, metavar="N", help="default: the study's own")
    add("--batch-size", type=int, metavar="N", help="default: the study's own")
    add("--learning-rate", type=float, metavar="RATE", help="default: the study's own")
    add("--subset", type=int, metavar="N", help="the first N training pictures; default: all")
    add(
        *("--seeds", "--seed"),
        type=int,
        nargs="+",
        default=[0],
        metavar="N",
        help="each is a run of its own; default: 0",
    )
    add("--data", type=Path, metavar="DIR", help="a folder with the IDX files of MNIST")
    add_machine(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the study; 1 if it was interrupted.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    if len(set(options.seeds)) != len(options.seeds):
        raise SettingsError(f"seeds {options.seeds}: one stands twice")
    changed = {
        name: value
        for name in ("epochs", "batch_size", "learning_rate")
        if (value := getattr(options, name)) is not None
    }
    for seed in options.seeds:
        settings(seed=seed, **changed)
    out = options.out or Path("studies") / options.study
    device = use_machine(options)
    with interruption() as stop:
        complete = STUDIES[options.study](
            Options(
                out=out,
                changed=changed,
                subset=options.subset,
                seeds=tuple(options.seeds),
                device=device,
                data=options.data,
                console=Console(stderr=True),
                stop=stop,
            )
        )
    print(f"{'done' if complete else 'interrupted; the same command goes on'}: {out / 'README.md'}")
    return 0 if complete else 1
