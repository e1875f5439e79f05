"""Studies that look into one trained network: training it, and the files they write."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from foveate_train import checkpoint, registry
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


class Sets(NamedTuple):
    """What a network learns from, and what it is tested on."""

    training: InMemory
    test: InMemory


def trained(
    name: str,
    arguments: Mapping[str, Argument],
    settings: Settings,
    options: StudyOptions,
    stop: Event,
) -> Trained | None:
    """Train a study's network on digits, or go on where it stands; None if interrupted.

    Raises:
        SettingsError: more than one seed is asked for.
        TrainError: whatever else stands in the way, as its subclass says.
    """
    seed = only_seed(options)
    classifier = registry.create(name, weights=f"random:{seed}", **arguments)
    shift = options.settings(settings).shift
    sets = Sets(*options.digits(classifier.input, shift=shift))
    return fitted(classifier, sets, settings, options, stop)


def fitted(
    classifier: Classifier, sets: Sets, settings: Settings, options: StudyOptions, stop: Event
) -> Trained | None:
    """Train a classifier on any data, or go on where it stands; None if interrupted.

    Raises:
        SettingsError: more than one seed is asked for.
        TrainError: whatever else stands in the way, as its subclass says.
    """
    settings = options.settings(settings).model_copy(update={"seed": only_seed(options)})
    data, test = sets
    device = options.use_machine()
    training = Training(classifier, data, settings, device=device)
    network = classifier.name.partition(":")[2]
    run = Run(training, test, options.folder / ".state" / f"{network}.pt")
    with StepProgress(done=training.number, total=training.total) as progress:
        for epoch in run.epochs(progress, stop):
            progress.epoch(epoch, settings.epochs, len(data))
    if training.number < training.total:
        return None
    classifier.module.to("cpu").eval().requires_grad_(requires_grad=False)
    record = {
        "study": options.study,
        "classifier": classifier.name,
        "arguments": classifier.arguments,
        "settings": settings.model_dump(mode="json"),
        "training_images": len(data),
        "test_images": len(test),
        "test_accuracy": run.history[-1].accuracy,
        "data_digest": data.digest,
        "machine": machine(device),
        "versions": versions(),
    }
    return Trained(classifier, test, record)


def only_seed(options: StudyOptions) -> int:
    """Return the seed of a study of one network.

    Raises:
        SettingsError: more than one is asked for.
    """
    if len(options.seeds) > 1:
        raise SettingsError(
            f"seeds {list(options.seeds)}: the study {options.study} looks into one network"
        )
    return options.seeds[0]


def keep(folder: Path, trained: Trained) -> None:
    """Write the network as the checkpoint `folder`/checkpoint, to be exported.

    Raises:
        CheckpointError: the disk refuses.
    """
    record: Mapping[str, Any] = trained.record
    checkpoint.save(
        folder / "checkpoint",
        trained.classifier,
        metrics={"test_accuracy": record["test_accuracy"]},
        data_digest=record["data_digest"],
        seed=record["settings"]["seed"],
    )


def write(
    folder: Path,
    *,
    results: Mapping[str, Any],
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    pictures: Mapping[str, Callable[[Path], object]],
    page: Callable[[Mapping[str, Any]], str],
) -> None:
    """Write the files of a study.

    Args:
        folder: of the study.
        results: what was measured, and on what.
        columns: of the CSV.
        rows: of the CSV.
        pictures: what saves each, by file name.
        page: makes the page of the results.

    Raises:
        CheckpointError: the disk refuses.
    """
    text = json.dumps(results, indent=1)
    pages.write(
        folder,
        results=text,
        table=pages.table(columns, rows),
        # Of what the file holds, so that a page can be made again of it.
        page=page(json.loads(text)),
        pictures=pictures,
    )


def page(
    name: str,
    results: Mapping[str, Any],
    *,
    nouns: tuple[str, str] = ("digits", "pictures"),
    **values: object,
) -> str:
    """Fill a study's template with what all results hold, and with more values.

    `nouns` are what the network learnt from, and what it was tested on.
    """
    environment = {key: results[key] for key in ("machine", "versions")}
    return pages.filled(
        name,
        environment,
        described=described(results, nouns),
        tested=results["test_images"],
        **values,
    )


def described(record: Mapping[str, Any], nouns: tuple[str, str]) -> str:
    """Return the sentence that says how the network was trained, and how to repeat it."""
    settings, images = record["settings"], record["training_images"]
    learnt, tested = nouns
    return (
        f"`{record['classifier']}`, trained for {epochs(settings['epochs'])} on "
        f"{images:,} {learnt}; {record['test_accuracy']:.2%} of the {record['test_images']:,} test "
        f"{tested} are right. To repeat it:"
        f"\n\n    {pages.command(record['study'], settings, images, [settings['seed']])}"
    )


def epochs(number: int) -> str:
    """Return the number of epochs as text."""
    return "1 epoch" if number == 1 else f"{number} epochs"
