"""From a classifier and data to a checkpoint, with what was measured.

Beside the checkpoint DIR stands DIR.run, with what belongs to the run:

    state.pt        where it stands, for --resume
    decoded.txt     the digests of pictures that are whole
    judged/         the checkpoint of the training that was judged, and judged.run/, where
                    all pictures were learnt from afterwards
    last/           the checkpoint of the last epoch, where DIR is that of the best
    tensorboard/    the log, with --tensorboard
"""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from foveate_train import checkpoint, distributed
from foveate_train.classifier import Classifier
from foveate_train.data.batches import Data
from foveate_train.errors import MissingPackageError, ResumeError, SettingsError
from foveate_train.interruption import interruption
from foveate_train.loop import Backbone, Training, evaluate
from foveate_train.progress import StepProgress
from foveate_train.run import Run
from foveate_train.settings import Settings

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


STATE = "state.pt"
"""The name of a run's state in its folder."""
_LISTED = 20
"""How many classes are listed."""


@dataclass(frozen=True)
class Plan:
    """What is trained, on what, and how it is judged.

    Attributes:
        classifier: what is trained.
        data: what it is trained on.
        watched: what it is evaluated on after each epoch; None where another training
            in the same way was judged.
        metric: the name of that accuracy, such as `test_accuracy`.
        selects: whether that accuracy decides which epoch's weights are the
            result, and when to stop; if not, the last ones are, unless a pretrained
            network was better before the first step.
        test: where that is so, what the result is evaluated on in the end.
        backbone: what is pretrained; None where nothing is.
        weights: of the classes in the loss; None where they count alike.
        judged: the metrics of the training that was judged in place of this one. Where
            its start was the better one, this one's start is the result.
    """

    classifier: Classifier
    data: Data
    watched: Data | None
    metric: str
    selects: bool
    test: Data | None = None
    backbone: Backbone | None = None
    weights: tuple[float, ...] | None = None
    judged: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a run came to: its checkpoint's folder and metrics, and whether it was interrupted.

    Of several processes, the first alone knows the metrics.
    """

    folder: Path
    metrics: Mapping[str, float]
    interrupted: bool

    def __str__(self) -> str:
        """Return the result in a line."""
        said = [self.accuracies()]
        if self.interrupted:
            said.insert(0, "interrupted (--resume goes on)")
        took = f"{self.metrics['steps']:.0f} steps in {self.metrics['seconds']:.1f} s"
        return f"{', '.join(filter(None, said))} after {took}; checkpoint {self.folder}"

    def accuracies(self) -> str:
        """Return the accuracies by their names; empty where none is known."""
        return ", ".join(
            f"{name.replace('_', ' ')} {share:.2%}"
            for name, share in self.metrics.items()
            if name.endswith("_accuracy") and "/" not in name
        )

    def by_class(self) -> str:
        """Return the accuracy of each class, the lowest first; empty where it is unknown."""
        shares = {
            name.partition("/")[2]: share for name, share in self.metrics.items() if "/" in name
        }
        least = sorted(shares, key=lambda label: shares[label])[:_LISTED]
        more = f", and {len(shares) - _LISTED} more" if len(shares) > _LISTED else ""
        return ", ".join(f"{label} {shares[label]:.0%}" for label in least) + more


def fit(
    plan: Plan,
    settings: Settings,
    folder: Path,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    device: torch.device | None = None,
) -> Result:
    """Train as planned, report each epoch, and write the checkpoint.

    Args:
        plan: what is trained.
        settings: of the training.
        folder: of the checkpoint; a checkpoint that is there is replaced.
        resume: whether to go on from the state that `folder`.run holds.
        tensorboard: whether to write a log.
        device: where to compute; by default a GPU if there is one.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    if settings.patience is not None and not plan.selects:
        raise SettingsError(f"--patience {settings.patience} needs pictures to judge by: --holdout")
    checkpoint.check_target(folder)
    beside = run_folder(folder)
    _prepare(beside, resume=resume)
    training = Training(
        plan.classifier,
        plan.data,
        settings,
        backbone=plan.backbone,
        weights=plan.weights,
        device=device,
    )
    # A new head begins as a solution, which may be the best there is.
    begun = plan.backbone is not None
    # Of several processes the first alone knows the metrics.
    stays = distributed.any_wants(plan.judged.get("epochs") == 0)
    run = Run(training, plan.watched, beside / STATE, from_start=begun)
    progress = StepProgress(done=run.training.number, total=run.training.total)
    with ExitStack() as stack:
        logs = tensorboard and distributed.rank() == 0
        log = stack.enter_context(_log(beside / "tensorboard")) if logs else None
        stop = stack.enter_context(interruption())
        stack.enter_context(progress)
        for epoch in run.epochs(progress, stop):
            progress.epoch(epoch, settings.epochs, len(plan.data), plan.metric.replace("_", " "))
            if log is not None:
                log.add_scalar("loss/train", epoch.loss, epoch.number)
                log.add_scalar("seconds", epoch.seconds, epoch.number)
                if epoch.accuracy is not None:
                    log.add_scalar(f"accuracy/{plan.metric}", epoch.accuracy, epoch.number)
            if plan.selects:
                _save(beside / "last", plan, run)
            if epoch is run.best if plan.selects else epoch.number == 0:
                _save(folder, plan, run)
            if stays:
                break
        interrupted = stop.is_set()
    if not run.history or (not plan.selects and (interrupted or not run.is_below_its_start)):
        _save(folder, plan, run)
    elif plan.test is not None and not interrupted:
        _add_test_accuracy(folder, plan.test)
    metrics = checkpoint.load(folder).metrics if distributed.rank() == 0 else {}
    return Result(folder, metrics, interrupted)


def run_folder(folder: Path) -> Path:
    """Return the folder of the run whose checkpoint is `folder`."""
    return folder.with_name(f"{folder.name}.run")


def _prepare(beside: Path, *, resume: bool) -> None:
    """See to a state to resume; or remove what an earlier run left, its log included."""
    state = beside / STATE
    if resume and not state.is_file():
        raise ResumeError(f"{state}: there is no run to resume")
    if not resume and distributed.rank() == 0:
        state.unlink(missing_ok=True)
        shutil.rmtree(beside / "tensorboard", ignore_errors=True)


def _log(folder: Path) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            'a log needs TensorBoard: pip install "foveate-train[tensorboard]"'
        ) from error
    return SummaryWriter(str(folder))


def _save(folder: Path, plan: Plan, run: Run) -> None:
    """Write a checkpoint of the weights as they are, with what is known of them."""
    if distributed.rank() != 0:
        return
    training, history = run.training, run.history
    metrics: dict[str, float] = {
        "epochs": history[-1].number if history else 0,
        "steps": training.number,
        "seconds": sum(epoch.seconds for epoch in history),
    }
    if history and not run.within_epoch:
        last = history[-1]
        metrics |= {"train_loss": last.loss} if last.number else {}
        if plan.watched is not None:
            metrics |= {plan.metric: last.accuracy or 0}
        if plan.backbone is not None and run.tally is not None:
            metrics |= run.tally.by_class(f"{plan.metric}/", training.classifier.labels)
    judged = {k: share for k, share in plan.judged.items() if k.partition("/")[0] == plan.metric}
    checkpoint.save(
        folder,
        training.result,
        metrics=metrics | judged,
        data_digest=plan.data.digest,
        seed=training.settings.seed,
    )


def _add_test_accuracy(folder: Path, test: Data) -> None:
    """Measure the result, which was chosen by other pictures, on the test set."""
    if distributed.rank() != 0:
        return
    read = checkpoint.load(folder)
    checkpoint.save(
        folder,
        read.classifier,
        metrics={**read.metrics, "test_accuracy": evaluate(read.classifier.module, test)},
        data_digest=read.record.data_digest,
        seed=read.record.seed,
    )
