"""`foveate train mnist`: train on MNIST, evaluate after each epoch, write a checkpoint."""

import argparse
from pathlib import Path

import torch

from foveate_train import registry
from foveate_train.classifier import Classifier
from foveate_train.commands.fitting import Plan, add_fitting, train_to_checkpoint
from foveate_train.commands.options import add_machine
from foveate_train.commands.settings import add_settings, read_settings
from foveate_train.data import mnist
from foveate_train.data.memory import InMemory
from foveate_train.errors import ArgumentsError, SettingsError
from foveate_train.settings import Settings

_CLASSES = 10
_FOR_OTHER_DATA = ("crop", "flip", "policy", "erase", "frozen_epochs", "backbone_rate")


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand's parser; its options carry `run`."""
    parser = commands.add_parser(
        "mnist",
        help="train on MNIST, which is fetched when it is not there",
        description=__doc__,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="a classifier, such as foveate:convnet4")
    add(
        "--argument",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the classifier, such as pool=false; may be repeated",
    )
    add("--weights", metavar="FILE", help="what to start from; default: random:SEED")
    add("--data", type=Path, metavar="DIR", help="a folder with the IDX files of MNIST")
    add(
        "--holdout",
        type=int,
        default=0,
        metavar="N",
        help="keep the last N training pictures out, and keep the weights that are best on them",
    )
    add_fitting(parser)
    add_machine(parser)
    add_settings(parser, without=_FOR_OTHER_DATA)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, write the checkpoint and print the result; 1 if interrupted.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    settings = read_settings(options)
    classifier = registry.create(
        options.model,
        weights=options.weights or f"random:{settings.seed}",
        **registry.parse_arguments(options.argument),
    )
    _check_takes_digits(classifier)
    plan = _plan(classifier, settings, options.data, options.holdout)
    return train_to_checkpoint(options, plan, settings)


def _plan(classifier: Classifier, settings: Settings, root: Path | None, holdout: int) -> Plan:
    """Watch the test set; or, with pictures held out, those, and the test set in the end."""
    images, labels = map(torch.from_numpy, mnist.load("train", root))
    kept = len(images) - holdout
    if holdout < 0 or kept < settings.batch_size:
        raise SettingsError(
            f"holdout {holdout} is not within 0 and {len(images) - settings.batch_size}: "
            "a batch has to remain"
        )
    training = InMemory(images[:kept, None], labels[:kept], classifier.input, shift=settings.shift)
    tested, truth = map(torch.from_numpy, mnist.load("test", root))
    test = InMemory(tested[:, None], truth, classifier.input)
    if not holdout:
        return Plan(classifier, training, test, "test_accuracy", selects=False)
    held = InMemory(images[kept:, None], labels[kept:], classifier.input)
    return Plan(classifier, training, held, "validation_accuracy", selects=True, test=test)


def _check_takes_digits(classifier: Classifier) -> None:
    spec = classifier.input
    if (spec.channels, spec.height, spec.width) != (1, 28, 28):
        raise ArgumentsError(
            f"{classifier.name} takes {spec.height}x{spec.width}x{spec.channels} pictures; "
            "MNIST's are 28x28x1"
        )
    if len(classifier.labels) != _CLASSES:
        raise ArgumentsError(f"{classifier.name} has {len(classifier.labels)} classes, MNIST 10")
