"""Fine-tuning from few pictures: its defaults against a linear probe, and against other training.

python -m benchmarks.finetuning [--sets NAME ...] [--seeds N] [--threads N] [--out FILE]

EfficientNet-Lite0 with its published weights learns the classes of each set, and is judged by
pictures that no training saw. `fine-tuned` is `foveate train finetune` with its defaults: a
fifth of the pictures is held out to choose by. `start` is the same network before the first
step. `linear probe` is scikit-learn's logistic regression, as it comes, on the pooled features
of all the pictures. `ten epochs` is a fixed recipe: the head alone for two epochs, then all
layers. What is given is the mean over the classes of what each got right.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression

from benchmarks import machine, pages
from benchmarks.finetuning_sets import SETS, write
from foveate_train import checkpoint, recipe, registry
from foveate_train.classifier import Classifier
from foveate_train.data.folder import FolderData, Photographs, scan
from foveate_train.fit import Plan, fit
from foveate_train.head import with_new_head
from foveate_train.loop import Backbone, tally
from foveate_train.settings import Settings

PAGE = pages.DOCS / "train" / "training.md"
RESULTS = Path(__file__).parent / "results" / "finetuning.json"
NETWORK = "package:efficientnet_lite0"
CPU = torch.device("cpu")

TEN_EPOCHS = {
    "epochs": 10,
    "frozen_epochs": 2,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "label_smoothing": 0.1,
}
WAYS = ("fine-tuned", "start", "linear probe", "ten epochs")


def _new(classes: Sequence[str], seed: int, weights: str | None = None) -> Any:
    return with_new_head(NETWORK, classes, weights=weights, seed=seed, arguments={})


def _judge(classifier: Classifier, judged: Photographs) -> float:
    """Return the mean of the classes' shares of pictures that were right."""
    counts = tally(
        classifier.module, FolderData(judged, classifier.input, Settings(), workers=0)
    ).by_class("", classifier.labels)
    return mean(counts.values())


def fine_tuned(training: Photographs, judged: Photographs, seed: int, out: Path) -> dict[str, Any]:
    """Fine-tune with the defaults; return what came of it, and of its start."""
    began = time.process_time()
    classifier, head = _new(training.classes, seed)
    said: list[str] = []
    plan, settings = recipe.plan(
        classifier,
        head,
        training.split(0.2, seed),
        {"seed": seed},
        workers=0,
        device=CPU,
        say=said.append,
    )
    spent = time.process_time() - began
    start = _judge(classifier, judged)
    began = time.process_time()
    fit(plan, settings, out, device=CPU)
    return {
        "fine-tuned": _judge(checkpoint.load(out).classifier, judged),
        "start": start,
        "cpu_seconds": round(spent + time.process_time() - began, 1),
        "said": said,
    }


def linear_probe(training: Photographs, judged: Photographs) -> float:
    """Return what a logistic regression on the pooled features gets right, a mean over classes."""
    classifier = registry.create(NETWORK)
    module = classifier.module.eval()
    head = module.get_submodule(next(reversed(dict(module.named_modules()))))
    assert isinstance(head, torch.nn.Linear)

    def features(part: Photographs) -> np.ndarray:
        given: list[torch.Tensor] = []
        keeps = head.register_forward_pre_hook(lambda _, seen: given.append(seen[0]))
        with keeps, torch.inference_mode():
            for batch in FolderData(part, classifier.input, Settings(), workers=0).all():
                module(batch.images)
        return torch.cat(given).numpy()

    fitted = LogisticRegression(max_iter=5000).fit(features(training), training.labels.numpy())
    right = fitted.predict(features(judged)) == judged.labels.numpy()
    return mean(right[judged.labels.numpy() == label].mean() for label in range(len(judged.counts)))


def ten_epochs(training: Photographs, judged: Photographs, seed: int, out: Path) -> float:
    """Train ten epochs, the best of which is kept; return the mean over classes."""
    classifier, head = _new(training.classes, seed)
    settings = Settings(seed=seed, **TEN_EPOCHS)
    data, watched = (
        FolderData(part, classifier.input, settings, workers=0)
        for part in training.split(0.2, seed)
    )
    plan = Plan(classifier, data, watched, "accuracy", selects=True, backbone=Backbone(head))
    fit(plan, settings, out, device=CPU)
    return _judge(checkpoint.load(out).classifier, judged)


def measure(name: str, seed: int) -> dict[str, Any]:
    """Return what each way gets right on one set, drawn from one seed."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            scan(write(draw(np.random.default_rng(seed)), Path(folder) / kind), "fail")
            for kind, draw in (("training", SETS[name].training), ("judged", SETS[name].judged))
        ]
        training, judged = parts
        return {
            "seed": seed,
            "training": sum(training.counts),
            "judged": sum(judged.counts),
            **fine_tuned(training, judged, seed, Path(folder) / "tuned"),
            "linear probe": linear_probe(training, judged),
            "ten epochs": ten_epochs(training, judged, seed, Path(folder) / "ten"),
        }


def page_part(result: Mapping[str, Any]) -> str:
    """Return the table for the page: means over the seeds."""
    rows = []
    for name, runs in result["sets"].items():
        shares = [f"{mean(run[way] for run in runs):.1%}" for way in WAYS]
        seconds = f"{mean(run['cpu_seconds'] for run in runs):.0f}"
        rows.append([SETS[name].title, str(runs[0]["judged"]), str(len(runs)), *shares, seconds])
    return pages.table(["trained on", "judged by", "seeds", *WAYS, "CPU-seconds"], rows)


def main() -> None:
    """Parse the command line, measure each set with each seed, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    sets: dict[str, list[dict[str, Any]]] = {}
    result = {
        "benchmark": "finetuning",
        "network": NETWORK,
        "settings": {"ten epochs": TEN_EPOCHS},
        "sets": sets,
        "machine": machine.describe(),
    }
    for seed in range(options.seeds):
        for name in options.sets:
            sets.setdefault(name, []).append(measure(name, seed))
            console.print(name, seed, sets[name][-1])
            machine.save(result, options.out)
    if options.out == RESULTS:
        pages.write_part(PAGE, "finetuning", page_part(result))
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()
