"""What a pretrained backbone is worth: fine-tuning against training from scratch in the same time.

python -m benchmarks.finetuning [--training N] [--test N] [--epochs N] [--threads N] [--out FILE]

The task is MNIST's digits as pictures of three channels, N of each digit. EfficientNet-Lite0
with its published weights gets a head of ten classes and is fine-tuned on them; the same
network with random weights is trained on them for as many CPU-seconds. Both are evaluated
on digits of MNIST's test set.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

from benchmarks import machine, pages
from foveate_train.data import mnist
from foveate_train.data.folder import FolderData, Photographs, scan
from foveate_train.head import with_new_head
from foveate_train.loop import Step, Training, evaluate
from foveate_train.settings import Settings

PAGE = pages.DOCS / "train" / "training.md"
RESULTS = Path(__file__).parent / "results" / "finetuning.json"
NETWORK = "package:efficientnet_lite0"

# A digit must be seen nearly whole, and is another one when mirrored.
PICTURES = {"batch_size": 20, "crop": 0.7, "flip": False}
FINE_TUNING = {
    **PICTURES,
    "learning_rate": 5e-3,
    "schedule": "cosine",
    "label_smoothing": 0.1,
}
# One rate for all layers, and no smoothing to hold a beginner back.
SCRATCH = {**PICTURES, "learning_rate": 2e-3, "schedule": "constant"}


def written(split: mnist.Split, count: int, into: Path) -> Photographs:
    """Write `count` pictures of every digit of a split of MNIST, one folder for each."""
    images, labels = mnist.load(split)
    for digit in range(10):
        folder = into / str(digit)
        folder.mkdir(parents=True)
        for number, image in enumerate(images[labels == digit][:count]):
            Image.fromarray(image).save(folder / f"{number}.png")
    return scan(into, "fail")


def train(
    digits: tuple[Photographs, Photographs],
    settings: Settings,
    weights: str | None,
    until: Callable[[Step, float], bool],
) -> dict[str, float]:
    """Train until `until` says so of a step and the CPU-seconds; return what came of it."""
    training, test = digits
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


def page_part(result: Mapping[str, Any]) -> str:
    """Return the table of the two for the page."""
    rows = []
    for name in ("fine-tuned", "from scratch"):
        found = result[name]
        accuracies = f"{found['test_accuracy']:.1%}", f"{found['train_accuracy']:.1%}"
        rows.append([name, *accuracies, f"{found['cpu_seconds']:.0f}", f"{found['epochs']:.1f}"])
    head = ["", "test accuracy", "training accuracy", "CPU-seconds", "epochs"]
    return pages.table(head, rows)


def main() -> None:
    """Parse the command line, train twice, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--training", type=int, default=50, help="pictures of every digit")
    parser.add_argument("--test", type=int, default=100, help="pictures of every digit")
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning; half of them frozen")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        digits = (
            written("train", options.training, Path(folder) / "training"),
            written("test", options.test, Path(folder) / "test"),
        )
        tuning = Settings(epochs=options.epochs, frozen_epochs=options.epochs // 2, **FINE_TUNING)
        tuned = train(digits, tuning, None, lambda _step, _spent: False)
        console.print("fine-tuned", tuned)
        beginning = Settings(epochs=10_000, **SCRATCH)
        limit = tuned["cpu_seconds"]
        scratch = train(digits, beginning, "random:0", lambda _, spent: spent >= limit)
        console.print("from scratch", scratch)
    result = {
        "benchmark": "finetuning",
        "network": NETWORK,
        "pictures": {
            name: len(part.files) for name, part in zip(("training", "test"), digits, strict=True)
        },
        "settings": {"fine-tuned": FINE_TUNING, "from scratch": SCRATCH},
        "fine-tuned": tuned,
        "from scratch": scratch,
        "machine": machine.describe(),
    }
    machine.save(result, options.out)
    if options.out == RESULTS:
        pages.write_part(PAGE, "finetuning", page_part(result))
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()
