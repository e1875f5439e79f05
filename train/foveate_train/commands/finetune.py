"""`foveate train finetune`: teach a pretrained classifier the classes of an image folder."""

import argparse
import sys
from pathlib import Path

from foveate_train import registry
from foveate_train.commands.fitting import Plan, add_fitting, train_to_checkpoint
from foveate_train.commands.options import add_machine
from foveate_train.commands.settings import add_settings, read_settings
from foveate_train.data.folder import FolderData, Photographs, scan
from foveate_train.errors import SettingsError
from foveate_train.head import with_new_head
from foveate_train.settings import Settings

_FROZEN = "2, or half of the epochs where they are fewer than 4"


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand's parser; its options carry `run`."""
    parser = commands.add_parser(
        "finetune",
        help="teach a pretrained classifier the classes of an image folder",
        description=__doc__,
    )
    add = parser.add_argument
    add("data", type=Path, metavar="FOLDER", help="one folder of pictures for each class")
    add("--model", required=True, metavar="NAME", help="such as package:efficientnet_lite0")
    add(
        "--argument",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the classifier; may be repeated",
    )
    add("--weights", metavar="FILE", help="the pretrained ones; default: the classifier's own")
    add("--validation", type=Path, metavar="FOLDER", help="the same classes, other pictures")
    add(
        "--holdout",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="without --validation, the share of each class to validate on; default: %(default)s",
    )
    add(
        "--corrupt",
        choices=("fail", "skip"),
        default="fail",
        help="what to do about a file that cannot be decoded; default: %(default)s",
    )
    add("--workers", type=int, default=2, metavar="N", help="that decode; default: %(default)s")
    add_fitting(parser)
    add_machine(parser)
    add_settings(
        parser,
        without=("shift",),
        epochs=10,
        batch_size=32,
        learning_rate=2e-3,
        schedule="cosine",
        label_smoothing=0.1,
        frozen_epochs=_FROZEN,
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, write the checkpoint and print the result; 1 if interrupted.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    settings = _settings(options)
    if options.workers < 0:
        raise SettingsError(f"workers {options.workers} is below 0")
    training, validation = _photographs(options, settings)
    classifier, head = with_new_head(
        options.model,
        training.classes,
        weights=options.weights,
        seed=settings.seed,
        arguments=registry.parse_arguments(options.argument),
    )
    data, watched = (
        FolderData(part, classifier.input, settings, workers=options.workers)
        for part in (training, validation)
    )
    plan = Plan(classifier, data, watched, "validation_accuracy", selects=True, head=head)
    return train_to_checkpoint(options, plan, settings)


def _settings(options: argparse.Namespace) -> Settings:
    """Return the settings; the frozen epochs follow the epochs where they are not given."""
    if options.frozen_epochs != _FROZEN:
        return read_settings(options)
    options.frozen_epochs = 0
    settings = read_settings(options)
    return settings.model_copy(update={"frozen_epochs": min(2, settings.epochs // 2)})


def _photographs(
    options: argparse.Namespace, settings: Settings
) -> tuple[Photographs, Photographs]:
    """List the pictures to train and to validate on, and report what is left out."""
    if not 0 < options.holdout < 1:
        raise SettingsError(f"holdout {options.holdout} is not a share between 0 and 1")
    training = scan(options.data, options.corrupt)
    corrupt = dict(training.corrupt)
    if options.validation is None:
        training, validation = training.split(options.holdout, settings.seed)
    else:
        validation = scan(options.validation, options.corrupt, training.classes)
        corrupt |= validation.corrupt
    for file, flaw in corrupt.items():
        print(f"left out {file}: {flaw}", file=sys.stderr)
    return training, validation
