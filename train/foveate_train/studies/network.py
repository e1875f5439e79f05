"""Studies that look into one trained network: training it, and the files they write."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import torch
from torchvision.utils import make_grid, save_image

from foveate_train import registry
from foveate_train.classifier import Argument, Classifier
from foveate_train.data.memory import InMemory
from foveate_train.environment import machine, versions
from foveate_train.errors import SettingsError
from foveate_train.loop import Training
from foveate_train.progress import StepProgress
from foveate_train.run import Run
from foveate_train.settings import Settings
from foveate_train.studies import pages
from foveate_train.studies.options import StudyOptions

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
    name: str,
    arguments: Mapping[str, Argument],
    settings: Settings,
    options: StudyOptions,
    stop: Event,
) -> Trained | None:
    """Train a study's network, or go on where it stands; None if interrupted.

    Raises:
        SettingsError: more than one seed is asked for.
        TrainError: whatever else stands in the way, as its subclass says.
    """
    if len(options.seeds) > 1:
        raise SettingsError(
            f"seeds {list(options.seeds)}: the study {options.study} looks into one network"
        )
    (seed,) = options.seeds
    settings = options.settings(settings).model_copy(update={"seed": seed})
    classifier = registry.create(name, weights=f"random:{seed}", **arguments)
    data, test = options.digits(classifier.input, shift=settings.shift)
    device = options.use_machine()
    training = Training(classifier, data, settings, device=device)
    run = Run(training, test, options.folder / ".state" / "network.pt")
    with StepProgress(done=training.number, total=training.total) as progress:
        for epoch in run.epochs(progress, stop):
            progress.epoch(epoch, settings.epochs, len(data))
    if training.number < training.total:
        return None
    classifier.module.to("cpu").eval().requires_grad_(requires_grad=False)
    record = {
        "study": options.study,
        "classifier": name,
        "arguments": classifier.arguments,
        "settings": settings.model_dump(mode="json"),
        "training_images": len(data),
        "test_accuracy": run.history[-1].accuracy,
        "data_digest": data.digest,
        "machine": machine(device),
        "versions": versions(),
    }
    return Trained(classifier, test, record)


def write(
    name: str,
    folder: Path,
    *,
    results: Mapping[str, Any],
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    pictures: Mapping[str, torch.Tensor],
    **values: object,
) -> None:
    """Write the files of a study.

    Args:
        name: of the study, and of its page's template.
        folder: of the study.
        results: what was measured, and on what.
        columns: of the CSV.
        rows: of the CSV.
        pictures: float32 [3, height, width] or [1, height, width], 0 to 1, by file name.
        values: of the template.

    Raises:
        CheckpointError: the disk refuses.
    """
    environment = {key: results[key] for key in ("machine", "versions")}
    pages.write(
        folder,
        results=json.dumps(results, indent=1),
        table=pages.table(columns, rows),
        page=pages.filled(name, environment, described=described(results), **values),
        pictures={name: partial(save_image, picture) for name, picture in pictures.items()},
    )


def described(record: Mapping[str, Any]) -> str:
    """Return the sentence that says how the network was trained, and how to repeat it."""
    settings, images = record["settings"], record["training_images"]
    epochs = settings["epochs"]
    return (
        f"`{record['classifier']}`, trained for {epochs} {'epoch' if epochs == 1 else 'epochs'} on "
        f"{images:,} digits, {record['test_accuracy']:.2%} right on the test set. To repeat it:"
        f"\n\n    {pages.command(record['study'], settings, images, [settings['seed']])}"
    )


def sheet(pictures: torch.Tensor, columns: int) -> torch.Tensor:
    """Lay [N, height, width] out row by row, each scaled to its own range, and enlarge it.

    A picture without any range, of a channel that answers to nothing, is black.
    """
    low, high = pictures.amin((1, 2), keepdim=True), pictures.amax((1, 2), keepdim=True)
    scaled = (pictures - low) / (high - low).clamp(min=1e-8)
    grid: torch.Tensor = make_grid(scaled[:, None], nrow=columns, padding=1, pad_value=0.5)
    return grid.repeat_interleave(_ENLARGED, 1).repeat_interleave(_ENLARGED, 2)
