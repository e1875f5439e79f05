"""Studies that look into one trained network: training it, and the files they write."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.utils import make_grid, save_image

from foveate_train import registry
from foveate_train.classifier import Argument, Classifier
from foveate_train.data.memory import InMemory
from foveate_train.environment import machine, versions
from foveate_train.errors import CheckpointError, SettingsError
from foveate_train.fitting import Fitting, Keeper
from foveate_train.progress import StepProgress
from foveate_train.settings import Settings
from foveate_train.studies.options import Options
from foveate_train.training import Training

_ENLARGED = 2


class Trained(NamedTuple):
    """A network trained for a study.

    Attributes:
        classifier: in evaluation mode, on the processor.
        test: the test pictures.
        record: how it was trained and what it reached, for `results.json`.
    """

    classifier: Classifier
    test: InMemory
    record: dict[str, object]


def trained(
    study: str,
    name: str,
    arguments: Mapping[str, Argument],
    settings: Settings,
    options: Options,
) -> Trained | None:
    """Train a study's network, or go on where it stands; None if interrupted.

    Raises:
        SettingsError: more than one seed is asked for.
        TrainError: whatever else stands in the way, as its subclass says.
    """
    if len(options.seeds) > 1:
        raise SettingsError(
            f"seeds {list(options.seeds)}: the study {study} looks into one network"
        )
    (seed,) = options.seeds
    settings = options.settings(settings).model_copy(update={"seed": seed})
    classifier = registry.create(name, weights=f"random:{seed}", **arguments)
    data, test = options.digits(classifier.input, shift=settings.shift)
    identity = {"settings": settings.model_dump(mode="json"), "data": data.digest}
    keeper = Keeper(options.out / ".state" / "network.pt", identity)
    training = Training(classifier, data, settings, device=options.device)
    fitting = Fitting(training, test, keeper)
    with StepProgress(options.console, done=training.number, total=training.total) as progress:
        for epoch in fitting.epochs(progress, options.stop):
            options.console.print(
                f"epoch {epoch.number}/{settings.epochs}: loss {epoch.loss:.4f}, "
                f"test accuracy {epoch.accuracy:.2%}",
                highlight=False,
            )
    if training.number < training.total:
        return None
    classifier.module.to("cpu").eval().requires_grad_(requires_grad=False)
    record = {
        "study": study,
        "classifier": name,
        "arguments": classifier.arguments,
        "settings": settings.model_dump(mode="json"),
        "training_images": len(data),
        "test_accuracy": fitting.history[-1].accuracy,
        "data_digest": data.digest,
        "machine": machine(options.device),
        "versions": versions(),
    }
    return Trained(classifier, test, record)


def write(
    folder: Path,
    *,
    results: Mapping[str, object],
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    page: Sequence[str],
    pictures: Mapping[str, torch.Tensor],
) -> None:
    """Write `results.json`, `results.csv`, the page and its pictures.

    Args:
        folder: of the study.
        results: what was measured, and on what.
        columns: of the CSV.
        rows: of the CSV.
        page: its paragraphs, in Markdown; the machine and versions are added.
        pictures: float32 [3, height, width] or [1, height, width], 0 to 1, by file name.

    Raises:
        CheckpointError: the disk refuses.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    closing = [
        f"{name.capitalize()}: " + ", ".join(f"{key} {value}" for key, value in known.items()) + "."
        for name in ("machine", "versions")
        if isinstance(known := results[name], dict)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (folder / "results.csv").write_text(text.getvalue(), encoding="utf-8")
        (folder / "README.md").write_text("\n\n".join([*page, *closing]) + "\n", encoding="utf-8")
        for name, picture in pictures.items():
            save_image(picture, folder / name)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error})") from error


def described(record: Mapping[str, object]) -> str:
    """Return the sentence that says how the network was trained, and how to repeat it."""
    settings, accuracy = record["settings"], record["test_accuracy"]
    assert isinstance(settings, dict)  # noqa: S101  for the type checker
    epochs = settings["epochs"]
    return (
        f"`{record['classifier']}`, trained for {epochs} {'epoch' if epochs == 1 else 'epochs'} on "
        f"{record['training_images']:,} digits, {accuracy:.2%} right on the test set. "
        f"To repeat it:\n\n    foveate train study {record['study']} --epochs {epochs} "
        f"--batch-size {settings['batch_size']} --learning-rate {settings['learning_rate']} "
        f"--subset {record['training_images']} --seeds {settings['seed']}"
    )


def sheet(pictures: torch.Tensor, columns: int) -> torch.Tensor:
    """Lay [N, height, width] out row by row, each scaled to its own range, and enlarge it.

    A picture without any range, of a channel that answers to nothing, is black.
    """
    low, high = pictures.amin((1, 2), keepdim=True), pictures.amax((1, 2), keepdim=True)
    scaled = (pictures - low) / (high - low).clamp(min=1e-8)
    grid: torch.Tensor = make_grid(scaled[:, None], nrow=columns, padding=1, pad_value=0.5)
    return grid.repeat_interleave(_ENLARGED, 1).repeat_interleave(_ENLARGED, 2)
