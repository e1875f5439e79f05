"""From a classifier and data to a checkpoint: what every training subcommand does.

Beside the checkpoint DIR stands DIR.run, with what belongs to the run:

    state.pt        where it stands, for --resume
    last/           the checkpoint of the last epoch, where DIR is that of the best
    tensorboard/    the log, with --tensorboard
"""

import argparse
import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from foveate_train import checkpoint, distributed
from foveate_train.classifier import Classifier
from foveate_train.commands.interruption import interruption
from foveate_train.commands.options import use_machine
from foveate_train.data.batches import Data
from foveate_train.epoch_log import EpochLog
from foveate_train.errors import ResumeError, SettingsError
from foveate_train.fitting import Fitting, Identity, Keeper
from foveate_train.progress import StepProgress
from foveate_train.settings import Settings
from foveate_train.training import Training, evaluate


@dataclass(frozen=True)
class Plan:
    """What is trained, on what, and how it is judged.

    Attributes:
        classifier: what is trained.
        data: what it is trained on.
        watched: what it is evaluated on after each epoch.
        metric: the name of that accuracy, such as `test_accuracy`.
        selects: whether that accuracy decides which epoch's weights are the
            result, and when to stop; if not, the last ones are.
        test: where that is so, what the result is evaluated on in the end.
        head: the parameters that are new, where the others are pretrained.
    """

    classifier: Classifier
    data: Data
    watched: Data
    metric: str
    selects: bool
    test: Data | None = None
    head: frozenset[str] | None = None


def add_fitting(parser: argparse.ArgumentParser) -> None:
    """Add the options that `train_to_checkpoint` reads."""
    add = parser.add_argument
    add("--out", required=True, type=Path, metavar="DIR", help="the checkpoint's folder")
    add("--resume", action="store_true", help="go on where DIR.run/state.pt stands")
    add("--tensorboard", action="store_true", help="write a TensorBoard log to DIR.run/tensorboard")
    add("--json", action="store_true", help="print the result as JSON")


def train_to_checkpoint(options: argparse.Namespace, plan: Plan, settings: Settings) -> int:
    """Train, write the checkpoint and print the result; 1 if interrupted.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    if settings.patience is not None and not plan.selects:
        raise SettingsError(f"patience {settings.patience} needs pictures to judge by: --holdout")
    out: Path = options.out
    checkpoint.check_target(out)
    keeper = Keeper(_run_folder(out) / "state.pt", _identity(plan, settings))
    if not options.resume:
        _forget(keeper, _run_folder(out))
    elif not keeper.path.is_file():
        raise ResumeError(f"{keeper.path}: there is no run to resume")
    training = Training(
        plan.classifier, plan.data, settings, head=plan.head, device=use_machine(options)
    )
    fitting = Fitting(training, plan.watched, keeper)
    console = Console(stderr=True, quiet=distributed.rank() != 0)
    with ExitStack() as stack:
        log = (
            stack.enter_context(EpochLog(_run_folder(out) / "tensorboard"))
            if options.tensorboard and distributed.rank() == 0
            else None
        )
        stop = stack.enter_context(interruption())
        progress = stack.enter_context(
            StepProgress(console, done=training.number, total=training.total)
        )
        for epoch in fitting.epochs(progress, stop):
            accuracy = f"{plan.metric.replace('_', ' ')} {epoch.accuracy:.2%}"
            speed = len(plan.data) / epoch.seconds
            console.print(
                f"epoch {epoch.number}/{settings.epochs}: loss {epoch.loss:.4f}, {accuracy}, "
                f"{speed:.0f} images/s",
                highlight=False,
            )
            if log is not None:
                log.write(epoch, plan.metric)
            if plan.selects:
                _save(_run_folder(out) / "last", plan, fitting)
                if epoch == max(fitting.history, key=lambda each: each.accuracy or 0):
                    _save(out, plan, fitting)
        interrupted = stop.is_set()
    if not plan.selects or not fitting.history:
        _save(out, plan, fitting)
    elif plan.test is not None and not interrupted:
        _add_test_accuracy(out, plan.test)
    if distributed.rank() == 0:
        print(_result(out, plan.metric, interrupted=interrupted, as_json=options.json))
    return 1 if interrupted else 0


def _forget(keeper: Keeper, folder: Path) -> None:
    """Remove what an earlier run left, so that its log does not run into this one's."""
    if distributed.rank() == 0:
        keeper.forget()
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _run_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.run")


def _identity(plan: Plan, settings: Settings) -> Identity:
    return {
        "classifier": plan.classifier.name,
        "arguments": plan.classifier.arguments,
        "data": plan.data.digest,
        **settings.model_dump(mode="json"),
    }


def _save(folder: Path, plan: Plan, fitting: Fitting) -> None:
    """Write a checkpoint of the weights as they are, with what is known of them."""
    if distributed.rank() != 0:
        return
    training, history = fitting.training, fitting.history
    metrics: dict[str, float] = {
        "epochs": len(history),
        "steps": training.number,
        "seconds": sum(epoch.seconds for epoch in history),
    }
    if history and not fitting.within_epoch:
        metrics |= {"train_loss": history[-1].loss, plan.metric: history[-1].accuracy or 0}
    checkpoint.save(
        folder,
        training.result,
        metrics=metrics,
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


def _result(folder: Path, metric: str, *, interrupted: bool, as_json: bool) -> str:
    metrics = checkpoint.load(folder).metrics
    if as_json:
        return json.dumps({"checkpoint": str(folder), **metrics})
    known = [name for name in dict.fromkeys((metric, "test_accuracy")) if name in metrics]
    outcome = ", ".join(f"{name.replace('_', ' ')} {metrics[name]:.2%}" for name in known)
    if interrupted:
        outcome = ", ".join(filter(None, ["interrupted (--resume goes on)", outcome]))
    return (
        f"{outcome} after {metrics['steps']:.0f} steps in {metrics['seconds']:.1f} s; "
        f"checkpoint {folder}"
    )
