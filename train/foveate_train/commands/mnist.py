"""`foveate train mnist`: train on MNIST, evaluate after each epoch, write a checkpoint."""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from foveate_train import checkpoint, registry
from foveate_train.classifier import Classifier
from foveate_train.commands.interruption import interruption
from foveate_train.data import mnist
from foveate_train.data.digest import digest
from foveate_train.errors import ArgumentsError, SettingsError
from foveate_train.training import Settings, evaluate, train

_CLASSES = 10


@dataclass(frozen=True)
class _Split:
    """Pictures uint8 [N, 1, 28, 28] and their labels int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor
    digest: str


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand's parser; its options carry `run`."""
    parser = commands.add_parser(
        "mnist",
        help="train on MNIST, which is fetched when it is not there",
        description=__doc__,
    )
    default = Settings()
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
    add("--out", required=True, type=Path, metavar="DIR", help="the checkpoint's folder")
    add("--epochs", type=int, default=default.epochs, metavar="N", help="default: %(default)s")
    add("--seed", type=int, default=default.seed, metavar="N", help="default: %(default)s")
    add(
        "--batch-size",
        type=int,
        default=default.batch_size,
        metavar="N",
        help="default: %(default)s",
    )
    add(
        "--learning-rate",
        type=float,
        default=default.learning_rate,
        metavar="RATE",
        help="the peak of the one-cycle schedule; default: %(default)s",
    )
    add("--data", type=Path, metavar="DIR", help="a folder with the IDX files of MNIST")
    add("--threads", type=int, metavar="N", help="default: torch's choice")
    add("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, write the checkpoint and print the result; 1 if interrupted.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    settings = _settings(options)
    if options.threads is not None:
        if options.threads < 1:
            raise SettingsError(f"threads {options.threads} is below 1")
        torch.set_num_threads(options.threads)
    classifier = registry.create(
        options.model,
        weights=options.weights or f"random:{settings.seed}",
        **registry.parse_arguments(options.argument),
    )
    _check_takes_digits(classifier)
    checkpoint.check_target(options.out)
    training, test = _load("train", options.data), _load("test", options.data)
    console = Console(stderr=True)
    with interruption() as stop:
        metrics = _fit(classifier, training, test, settings, console=console, stop=stop)
    checkpoint.save(
        options.out,
        classifier,
        metrics=metrics,
        data_digest=training.digest,
        seed=settings.seed,
    )
    print(_result(options.out, metrics, as_json=options.json))
    return 0 if metrics["epochs"] == settings.epochs else 1


def _result(folder: Path, metrics: dict[str, float], *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"checkpoint": str(folder), **metrics})
    accuracy = metrics.get("test_accuracy")
    outcome = "interrupted" if accuracy is None else f"test accuracy {accuracy:.2%}"
    return (
        f"{outcome} after {metrics['steps']:.0f} steps in {metrics['seconds']:.1f} s; "
        f"checkpoint {folder}"
    )


def _settings(options: argparse.Namespace) -> Settings:
    try:
        return Settings(
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
        )
    except ValidationError as error:
        raise SettingsError(
            "; ".join(f"{e['loc'][0]} {e['input']}: {e['msg']}" for e in error.errors())
        ) from error


def _check_takes_digits(classifier: Classifier) -> None:
    spec = classifier.input
    if (spec.channels, spec.height, spec.width) != (1, 28, 28):
        raise ArgumentsError(
            f"{classifier.name} takes {spec.height}x{spec.width}x{spec.channels} pictures; "
            "MNIST's are 28x28x1"
        )
    if len(classifier.labels) != _CLASSES:
        raise ArgumentsError(f"{classifier.name} has {len(classifier.labels)} classes, MNIST 10")


def _load(split: mnist.Split, root: Path | None) -> _Split:
    images, labels = mnist.load(split, root)
    return _Split(
        torch.from_numpy(images)[:, None], torch.from_numpy(labels), digest(images, labels)
    )


def _fit(
    classifier: Classifier,
    training: _Split,
    test: _Split,
    settings: Settings,
    *,
    console: Console,
    stop: Event,
) -> dict[str, float]:
    """Train with progress on the console until done or `stop` is set.

    Returns:
        `epochs` and `steps` that were finished, `seconds` of training without
        evaluation, `train_loss` of the last full epoch, and `test_accuracy`
        where it was measured on the weights as they are now.
    """
    metrics: dict[str, float] = {"epochs": 0, "steps": 0, "seconds": 0.0}
    loss_sum, seen = 0.0, 0
    with _progress(console) as progress:
        task = progress.add_task("", epoch=1, loss=0.0, speed=0.0)
        began = time.perf_counter()
        for step in train(classifier, training.images, training.labels, settings):
            loss = float(step.loss)
            loss_sum, seen = loss_sum + loss * step.images, seen + step.images
            seconds = metrics["seconds"] + time.perf_counter() - began
            speed = (len(training.images) * (step.epoch - 1) + seen) / seconds
            progress.update(
                task,
                completed=step.number,
                total=step.total,
                epoch=step.epoch,
                loss=loss,
                speed=speed,
            )
            metrics["steps"] = step.number
            metrics.pop("test_accuracy", None)
            if step.ends_epoch:
                accuracy = evaluate(classifier, test.images, test.labels)
                metrics |= {
                    "epochs": step.epoch,
                    "seconds": seconds,
                    "train_loss": loss_sum / seen,
                    "test_accuracy": accuracy,
                }
                console.print(
                    f"epoch {step.epoch}/{settings.epochs}: loss {loss_sum / seen:.4f}, "
                    f"test accuracy {accuracy:.2%}, {speed:.0f} images/s",
                    highlight=False,
                )
                loss_sum, seen, began = 0.0, 0, time.perf_counter()
            if stop.is_set():
                metrics["seconds"] = seconds
                break
    return metrics


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} images/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
