"""Fine-tuning's plan: what follows from the pictures, where no option says otherwise."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from foveate_train.classifier import Classifier
from foveate_train.data.batches import steps
from foveate_train.data.folder import FolderData, Photographs
from foveate_train.data.kept import Kept, made
from foveate_train.fit import Plan
from foveate_train.loop import Backbone
from foveate_train.settings import Settings, checked

if TYPE_CHECKING:
    from foveate_train.transfer import Start

DEFAULTS: Mapping[str, object] = {
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "label_smoothing": 0.1,
    "crop": 0.7,
}
FOLLOWING = {
    "batch_size": "16; 32 from 300 pictures on",
    "epochs": "3, or as many more as 80 steps take",
    "backbone_rate": "1; 0.1 where no stage stays as it is",
    "frozen_epochs": "0; a quarter of the epochs where the head is no linear layer",
    "balance": "where the largest class has over 1.5 times the pictures of the smallest",
}
"""The defaults that follow from the pictures, in words."""

_MANY = 300
_COMPARED = 300
"""By how many pictures the stages are compared, about."""
_JUDGES = 100
"""With fewer pictures to judge by, no epoch is chosen by its accuracy."""
_EPOCHS, _STEPS, _STEPS_AN_EPOCH = 3, 80, 10
_VIEWS, _KEPT_BYTES = 8, 2**30
_UNEVEN = 1.5


def check(given: Mapping[str, object]) -> Settings:
    """Return the settings that are given, and any others; so they are checked early.

    Raises:
        SettingsError: one is outside its limits.
    """
    return checked(Settings, {"batch_size": 16, "epochs": 1_000_000, **given})


def plan(
    classifier: Classifier,
    head: frozenset[str],
    photographs: tuple[Photographs, Photographs],
    given: Mapping[str, object],
    *,
    workers: int,
    device: torch.device,
    say: Callable[[str], None],
    frozen: tuple[str, ...] | None = None,
) -> tuple[Plan, Settings]:
    """Return what to train and how; the classifier's new head is set to a first solution.

    Args:
        classifier: with a new head; it is moved to `device`.
        head: the parameters of the head, by name.
        photographs: to train on and to judge by.
        given: the settings that options name.
        workers: processes that decode.
        device: where to compute.
        say: called with each decision, a line.
        frozen: the stages that stay as they are; None for what a comparison says.

    Raises:
        SettingsError: a setting is outside its limits.
    """
    training, validation = photographs
    known = check(given)
    module = classifier.module.to(memory_format=torch.channels_last).to(device)
    compared = training.sample(math.ceil(_COMPARED / len(training.classes)), known.seed)
    # Only here, since scikit-learn takes a second to import.
    from foveate_train.transfer import begin  # noqa: PLC0415

    start = begin(
        module, head, FolderData(compared, classifier.input, known, workers=workers), frozen
    )
    few = len(validation.pictures) < _JUDGES
    settings = settings_for(training.counts, given, start, few=few)
    for line in _decisions(start, settings, training.counts, len(validation.pictures)):
        say(line)
    repeats = passes(len(training.pictures), settings.batch_size)
    folders = (
        FolderData(training, classifier.input, settings, workers=workers, passes=repeats),
        FolderData(validation, classifier.input, settings, workers=workers),
    )
    kept = _keep(module, start.frozen, folders, settings, repeats)
    data, watched = kept or folders
    found = Plan(
        classifier,
        data,
        watched,
        "validation_accuracy",
        selects=not few or settings.patience is not None,
        backbone=Backbone(head, start.frozen, passed=kept is not None),
        weights=_weights(training.counts) if settings.balance else None,
    )
    return found, settings


def _decisions(
    start: "Start", settings: Settings, counts: Sequence[int], judges: int
) -> Iterator[str]:
    """Give in sentences what was decided, and a warning of few pictures to judge by."""
    if start.suffices:
        alone = settings.frozen_epochs == settings.epochs
        yield (
            "no stage tells the classes apart better than the last: "
            f"{'the head alone learns' if alone else 'the head learns first'}"
        )
    elif start.frozen:
        yield (
            f"the stages up to {start.frozen[-1]} stay as they are: what they make of pictures "
            "tells the classes apart best"
        )
    if settings.balance:
        yield f"classes of {min(counts)} to {max(counts)} pictures count alike in the loss"
    if judges < _JUDGES:
        yield (
            f"warning: {judges} pictures to judge by are few: the accuracy can be "
            f"{100 / math.sqrt(judges):.0f} points off; --validation FOLDER gives others"
        )


def _keep(
    module: nn.Module,
    frozen: tuple[str, ...],
    folders: tuple[FolderData, FolderData],
    settings: Settings,
    repeats: int,
) -> tuple[Kept, Kept] | None:
    """Return what the frozen stages make of pictures to train on, in views, and to judge by.

    None where there are no such stages or where this would take too much memory; or
    where the network is compiled, which takes it as a whole.
    """
    data, watched = folders
    if not frozen or settings.compile:
        return None
    judges = made(module, frozen, watched.all())
    room = _KEPT_BYTES // (judges[0].numel() * judges.element_size()) - len(judges)
    views = min(_VIEWS, repeats * settings.epochs, room // len(data.photographs.pictures))
    if views < min(2, settings.epochs) or not judges.isfinite().all():
        return None
    seen = [data.all(), *(data.view(settings.seed, number) for number in range(1, views))]
    kept = torch.stack([made(module, frozen, view) for view in seen])
    return (
        Kept(kept, data.photographs.labels, data.digest, passes=repeats),
        Kept(judges[None], watched.photographs.labels, watched.digest),
    )


def _weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Return the weights that make classes of so many pictures count alike, 1 in the mean."""
    return tuple(sum(counts) / (len(counts) * count) for count in counts)


def settings_for(
    counts: Sequence[int], given: Mapping[str, object], start: "Start", *, few: bool
) -> Settings:
    """Return the settings for so many pictures of each class, and a few or more to judge by."""
    count = sum(counts)
    known = check({"batch_size": 16 if count < _MANY else 32, **given})
    epoch = steps(count * passes(count, known.batch_size), known.batch_size)
    settings = checked(
        Settings,
        {
            **DEFAULTS,
            "batch_size": known.batch_size,
            "epochs": known.frozen_epochs + max(_EPOCHS, math.ceil(_STEPS / epoch)),
            "backbone_rate": 1.0 if start.frozen else 0.1,
            "balance": max(counts) > _UNEVEN * min(counts),
            **given,
        },
    )
    if "frozen_epochs" in given:
        return settings
    rests = settings.epochs if few and start.suffices else settings.epochs // 4
    return settings.model_copy(
        update={"frozen_epochs": 0 if start.solved and not start.suffices else rests}
    )


def passes(count: int, batch_size: int) -> int:
    """Return how often an epoch sees each of so many pictures, so that it has enough steps."""
    return max(1, math.ceil(_STEPS_AN_EPOCH * batch_size / count))
