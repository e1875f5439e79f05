"""`foveate train mnist`: train on MNIST, evaluate after each epoch, write a checkpoint."""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from foveate_train import registry
from foveate_train.classifier import Classifier
from foveate_train.data import mnist
from foveate_train.data.memory import InMemory
from foveate_train.errors import ArgumentsError, SettingsError
from foveate_train.fit import Plan
from foveate_train.options import Command, FitOptions
from foveate_train.settings import Settings, checked

_CLASSES = 10
_FOR_PHOTOGRAPHS = ("crop", "flip", "policy", "erase", "frozen_epochs", "backbone_rate", "balance")


class MnistOptions(FitOptions):
    """Train on MNIST, which is fetched when it is not there.

    The classifier is evaluated on the test set after each epoch. With --holdout the
    weights that are best on the pictures held out are the result, and with --patience
    the training ends when there is nothing better.

        foveate train mnist --model foveate:convnet4 --epochs 1 --out digits
    """

    data: Path | None = None
    """A folder with the IDX files of MNIST"""
    holdout: Annotated[int, Field(ge=0)] = 0
    """Keep the last N training pictures out, and keep the weights that are best on them"""


def run(options: MnistOptions) -> int:
    """Train, write the checkpoint and print the result; 1 if interrupted.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    settings = checked(Settings, options.given)
    classifier = registry.create(
        options.model,
        weights=options.weights or f"random:{settings.seed}",
        **registry.parse_arguments(options.argument),
    )
    _check_takes_digits(classifier)
    return options.fit(_plan(classifier, settings, options), settings)


def _plan(classifier: Classifier, settings: Settings, options: MnistOptions) -> Plan:
    """Watch the test set; or, with pictures held out, those, and the test set in the end."""
    images, labels = map(torch.from_numpy, mnist.load("train", options.data))
    kept = len(images) - options.holdout
    if kept < settings.batch_size:
        raise SettingsError(
            f"--holdout {options.holdout} is above {len(images) - settings.batch_size}: "
            "a batch has to remain"
        )
    training = InMemory(images[:kept, None], labels[:kept], classifier.input, shift=settings.shift)
    tested, truth = map(torch.from_numpy, mnist.load("test", options.data))
    test = InMemory(tested[:, None], truth, classifier.input)
    if not options.holdout:
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


COMMAND = Command(
    name="mnist",
    options=MnistOptions,
    run=run,
    settings=[name for name in Settings.model_fields if name not in _FOR_PHOTOGRAPHS],
)
