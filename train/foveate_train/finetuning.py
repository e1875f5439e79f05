"""Fine-tuning: from a pretrained classifier and pictures to a checkpoint.

Few pictures are worth more to learn from than to judge by: a logistic regression that learns
from all was ahead of a network that did without a fifth (`benchmarks.finetuning`). So where the
pictures held out are too few to choose an epoch, they judge a first training, and a second one
in the same way learns from all.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from foveate_train import distributed, recipe
from foveate_train.classifier import Classifier
from foveate_train.data.folder import Photographs
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
    plan_of = partial(recipe.plan, workers=workers, device=device)
    fitted = partial(fit, device=device, tensorboard=tensorboard)
    if isinstance(judges, Photographs):
        plan, settings = plan_of(*make(), (training, judges), given, say=say)
        return fitted(plan, settings, folder, resume=resume)
    rest, held = training.split(judges, recipe.check(given).seed)
    plan, settings = plan_of(*make(), (rest, held), given, say=say)
    if plan.selects:
        return fitted(plan, settings, folder, resume=resume)

    first = run_folder(folder) / _JUDGED
    state = run_folder(folder) / STATE
    if not resume and distributed.rank() == 0:
        # An earlier run's: if this one ends in its first training, it has begun no second.
        state.unlink(missing_ok=True)
    result = fitted(plan, settings, first, resume=resume)
    if distributed.any_wants(result.interrupted):
        if distributed.rank() == 0:
            shutil.copytree(first, folder, dirs_exist_ok=True)
        return replace(result, folder=folder)
    say(f"{result.accuracies()}; now all {len(training.pictures)} pictures are learnt from")
    decided = given | {name: getattr(settings, name) for name in recipe.FOLLOWING}
    frozen = () if plan.backbone is None else plan.backbone.frozen
    plan, settings = plan_of(*make(), (training, held), decided, say=lambda _: None, frozen=frozen)
    plan = replace(plan, watched=None, judged=result.metrics)
    return fitted(plan, settings, folder, resume=resume and state.is_file())
