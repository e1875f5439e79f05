"""What a pretrained backbone is worth: fine-tuning against training from scratch in the same time.

python -m benchmarks.finetuning --training DIR --test DIR [--epochs N] [--threads N] [--out FILE]

Both folders hold photographs of ImageNet, one folder for each class, named by its
WordNet id. The classes are joined into three: dogs, other animals, and things.
EfficientNet-Lite0 with its published weights gets a head of three classes and is
fine-tuned on the one folder; the same network with random weights is trained on
it for as many CPU-seconds. Both are evaluated on the other folder.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import machine
from foveate_train.data.folder import FolderData, Photographs, scan
from foveate_train.head import with_new_head
from foveate_train.settings import Settings
from foveate_train.training import Step, Training, evaluate

RESULTS = Path(__file__).parent / "results" / "finetuning.json"
NETWORK = "package:efficientnet_lite0"
# Synsets below the first are animals; those of the range are dogs and their kin.
THINGS = "n02600000"
DOGS = ("n02085000", "n02120000")
FINE_TUNING = {
    "batch_size": 20,
    "learning_rate": 5e-3,
    "schedule": "cosine",
    "label_smoothing": 0.1,
    "crop": 0.5,
}
# One rate for all layers, and no smoothing to hold a beginner back.
SCRATCH = {"batch_size": 20, "learning_rate": 2e-3, "schedule": "constant", "crop": 0.5}


def coarse(synset: str) -> str:
    """Return the class that a synset of ImageNet belongs to."""
    if synset >= THINGS:
        return "thing"
    return "dog" if DOGS[0] <= synset < DOGS[1] else "other animal"


def joined(folder: Path, into: Path) -> Photographs:
    """Link the photographs of `folder` into one folder for each coarse class."""
    for picture in folder.glob("n*/*"):
        link = into / coarse(picture.parent.name) / picture.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(picture.resolve())
    return scan(into, "fail")


def train(
    photographs: tuple[Photographs, Photographs],
    settings: Settings,
    weights: str | None,
    until: Callable[[Step, float], bool],
) -> dict[str, float]:
    """Train until `until` says so of a step and the CPU-seconds; return what came of it."""
    training, test = photographs
    classifier, head = with_new_head(
        NETWORK, training.classes, weights=weights, seed=settings.seed, arguments={}
    )
    data = FolderData(training, classifier.input, settings, workers=0)
    run = Training(classifier, data, settings, head=head if weights is None else None)
    began = time.process_time()
    for step in run.steps():
        spent = time.process_time() - began
        if until(step, spent):
            break
    tested = FolderData(test, classifier.input, settings, workers=0)
    return {
        "test_accuracy": evaluate(run.result.module, tested),
        "train_accuracy": evaluate(
            run.result.module, FolderData(training, classifier.input, settings, workers=0)
        ),
        "cpu_seconds": round(spent, 1),
        "epochs": round(step.number * settings.epochs / step.total, 2),
    }


def main() -> None:
    """Parse the command line, train twice, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    places = {"training": "FOVEATE_CALIBRATION_DIR", "test": "FOVEATE_IMAGENET_DIR"}
    for name, variable in places.items():
        known = os.environ.get(variable)
        parser.add_argument(f"--{name}", type=Path, default=known, required=not known)
    parser.add_argument(
        "--epochs", type=int, default=16, help="of fine-tuning; half of them frozen"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        photographs = (
            joined(options.training, Path(folder) / "training"),
            joined(options.test, Path(folder) / "test"),
        )
        tuning = Settings(epochs=options.epochs, frozen_epochs=options.epochs // 2, **FINE_TUNING)
        tuned = train(photographs, tuning, None, lambda _step, _spent: False)
        console.print("fine-tuned", tuned)
        beginning = Settings(epochs=10_000, **SCRATCH)
        limit = tuned["cpu_seconds"]
        scratch = train(photographs, beginning, "random:0", lambda _, spent: spent >= limit)
        console.print("from scratch", scratch)
        counts = [photographs[1].labels.count(label) for label in range(3)]
    result = {
        "benchmark": "finetuning",
        "network": NETWORK,
        "photographs": {
            name: len(part.files) for name, part in zip(places, photographs, strict=True)
        },
        "classes": dict(zip(photographs[1].classes, counts, strict=True)),
        "settings": {"fine-tuned": FINE_TUNING, "from scratch": SCRATCH},
        "fine-tuned": tuned,
        "from scratch": scratch,
        "always the largest class": max(counts) / sum(counts),
        "machine": machine.describe(),
    }
    machine.save(result, options.out)
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()
