"""Fine-tuning: from a pretrained classifier and pictures to a checkpoint.

Few pictures are worth more to learn from than to judge by: a logistic regression that learns
from all was ahead of a network that did without a fifth (`benchmarks.finetuning`). So where the
pictures held out are too few to choose an epoch, they judge a first training, and a second one
in the same way learns from all.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from foveate_train import distributed, recipe
from foveate_train.classifier import Classifier
from foveate_train.data.folder import Photographs
from foveate_train.errors import ResumeError
from foveate_train.fit import STATE, Result, fit, run_folder

Make = Callable[[], tuple[Classifier, frozenset[str]]]
"""Makes a classifier with a new head, and names the parameters of the head."""

_JUDGED = "judged"
"""The name of the first training's checkpoint in the folder of the run."""


def finetune(
    make: Make,
    training: Photographs,
    judges: Photographs | float,
    given: dict[str, object],
    folder: Path,
    *,
    workers: int,
    device: torch.device,
    say: Callable[[str], None],
    resume: bool = False,
    tensorboard: bool = False,
) -> Result:
    """Teach a classifier the classes of pictures, and write the checkpoint.

    Args:
        make: called for each of the trainings.
        training: the pictures to learn from.
        judges: other pictures to judge by; or the share of each class to hold out.
        given: the settings that options name.
        folder: of the checkpoint.
        workers: processes that decode.
        device: where to compute.
        say: called with each decision, a line.
        resume: whether to go on with the run in `folder`.run.
        tensorboard: whether to write a log.

    Returns:
        The result, whose accuracies are those of the training that was judged.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    how: dict[str, Any] = {"device": device, "tensorboard": tensorboard}

    where: dict[str, Any] = {"workers": workers, "device": device}
    if isinstance(judges, Photographs):
        plan, settings = recipe.plan(*make(), (training, judges), given, say=say, **where)
        return fit(plan, settings, folder, resume=resume, **how)
    rest, held = training.split(judges, recipe.check(given).seed)
    plan, settings = recipe.plan(*make(), (rest, held), given, say=say, **where)
    if plan.selects:
        return fit(plan, settings, folder, resume=resume, **how)

    first = run_folder(folder) / _JUDGED
    begun, second = _is_begun(first), _is_begun(folder)
    if resume and not begun:
        raise ResumeError(f"{run_folder(first) / STATE}: there is no run to resume")
    result = fit(plan, settings, first, resume=resume, **how)
    if result.interrupted:
        if distributed.rank() == 0:
            shutil.copytree(first, folder, dirs_exist_ok=True)
        return replace(result, folder=folder)
    say(f"{result.accuracies()}; now all {len(training.pictures)} pictures are learnt from")
    decided = given | {name: getattr(settings, name) for name in recipe.FOLLOWING}
    frozen = () if plan.backbone is None else plan.backbone.frozen
    plan, settings = recipe.plan(
        *make(), (training, held), decided, say=lambda _: None, frozen=frozen, **where
    )
    plan = replace(plan, watched=None, judged=result.metrics)
    return fit(plan, settings, folder, resume=resume and second, **how)


def _is_begun(folder: Path) -> bool:
    return (run_folder(folder) / STATE).is_file()
