"""Fine-tuning from few pictures: its defaults against a linear probe, and against other training.

python -m benchmarks.finetuning [--sets NAME ...] [--ways NAME ...] [--seeds N] [--threads N]
                                [--out FILE]

EfficientNet-Lite0 with its published weights learns the classes of each set, and is judged by
pictures that no training saw. `fine-tuned` is `foveate train finetune` with its defaults. `start`
is the same network before the first step. `linear probe` is scikit-learn's logistic regression,
as it comes, on the pooled features of all the pictures. `ten epochs` is a fixed recipe: the head
alone for two epochs, then all layers. `from scratch` is the same network with random weights,
trained for thirty epochs. What is given is the mean over the classes of what each got right.

The class activation maps of the fine-tuned network are judged as well, by the same pictures, 40 at
most: `insertion` and `centre` are the means of the areas under the insertion curves of the maps
and of a Gaussian in the middle (`foveate_runtime.evaluation.faithfulness`).

What the results file holds already is not measured again, so the command can be interrupted.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression

from benchmarks import machine, pages
from benchmarks.faithfulness import InTorch
from benchmarks.finetuning_sets import SETS, write
from foveate_runtime.evaluation.faithfulness import Examiner, auc
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.transform import prepare
from foveate_train import checkpoint, recipe, registry
from foveate_train.classifier import Classifier
from foveate_train.data.folder import FolderData, Photographs, scan
from foveate_train.finetuning import finetune
from foveate_train.fit import Plan, fit
from foveate_train.head import with_new_head
from foveate_train.loop import Backbone, tally
from foveate_train.settings import Settings

PAGE = pages.DOCS / "train" / "training.md"
RESULTS = Path(__file__).parent / "results" / "finetuning.json"
NETWORK = "package:efficientnet_lite0"
CPU = torch.device("cpu")
MAP = "cam"
MAPS = 40
"""The method whose maps are judged, and by how many pictures at most."""

TEN_EPOCHS = {
    "epochs": 10,
    "frozen_epochs": 2,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "label_smoothing": 0.1,
}
FROM_SCRATCH = {
    "epochs": 30,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "label_smoothing": 0.1,
}
COLUMNS = ("fine-tuned", "start", "linear probe", "ten epochs", "from scratch")
MAP_COLUMNS = ("insertion", "centre")


def _new(classes: Sequence[str], seed: int, weights: str | None = None) -> Any:
    return with_new_head(NETWORK, classes, weights=weights, seed=seed, arguments={})


def _judge(classifier: Classifier, judged: Photographs) -> float:
    """Return the mean of the classes' shares of pictures that were right."""
    counts = tally(
        classifier.module, FolderData(judged, classifier.input, Settings(), workers=0)
    ).by_class("", classifier.labels)
    return mean(counts.values())


def _insertion(out: Path, judged: Photographs) -> dict[str, float]:
    """Return the mean areas under the insertion curves of a checkpoint's maps and of the centre."""
    graph = InTorch(str(out))
    spec = graph.classifier.input
    examiner = Examiner(graph, spec, "softmax")
    files = [picture.file for picture in judged.pictures]
    found = [
        examiner.curves(prepare(file.read_bytes(), spec, ImageLimits())[0], number)
        for number, file in enumerate(files[:: math.ceil(len(files) / MAPS)])
    ]
    return {
        column: round(mean(auc(curves[name].insertion) for curves in found), 4)
        for column, name in (("insertion", MAP), ("centre", "centre Gaussian"))
    }


def fine_tuned(training: Photographs, judged: Photographs, seed: int, out: Path) -> dict[str, Any]:
    """Fine-tune with the defaults; return what came of it, and of its start."""
    how: dict[str, Any] = {"workers": 0, "device": CPU}
    classifier, head = _new(training.classes, seed)
    parts = training, training.split(0.2, seed)[1]
    recipe.plan(classifier, head, parts, {"seed": seed}, say=lambda _: None, **how)
    start = _judge(classifier, judged)
    said: list[str] = []
    make = partial(_new, training.classes, seed)
    began = time.process_time()
    finetune(make, training, 0.2, {"seed": seed}, out, say=said.append, **how)
    spent = time.process_time() - began
    return {
        "fine-tuned": _judge(checkpoint.load(out).classifier, judged),
        "start": start,
        "cpu_seconds": round(spent, 1),
        "said": said,
        **_insertion(out, judged),
    }


def linear_probe(
    training: Photographs, judged: Photographs, seed: int, out: Path
) -> dict[str, Any]:
    """Return what a logistic regression on the pooled features gets right, a mean over classes."""
    del seed, out  # It draws nothing and leaves no checkpoint.
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
    labels = range(len(judged.counts))
    shares = [float(right[judged.labels.numpy() == label].mean()) for label in labels]
    return {"linear probe": mean(shares)}


def ten_epochs(training: Photographs, judged: Photographs, seed: int, out: Path) -> dict[str, Any]:
    """Train ten epochs, the best of which is kept; return the mean over classes."""
    classifier, head = _new(training.classes, seed)
    settings = Settings(seed=seed, **TEN_EPOCHS)
    data, watched = (
        FolderData(part, classifier.input, settings, workers=0)
        for part in training.split(0.2, seed)
    )
    plan = Plan(classifier, data, watched, "accuracy", selects=True, backbone=Backbone(head))
    fit(plan, settings, out, device=CPU)
    return {"ten epochs": _judge(checkpoint.load(out).classifier, judged)}


def from_scratch(
    training: Photographs, judged: Photographs, seed: int, out: Path
) -> dict[str, Any]:
    """Train random weights on all the pictures; return the mean over classes."""
    classifier = registry.create(
        NETWORK, weights=f"random:{seed}", num_classes=len(training.classes)
    )
    classifier = replace(classifier, labels=training.classes, input=registry.create(NETWORK).input)
    settings = Settings(seed=seed, **FROM_SCRATCH)
    data, watched = (
        FolderData(part, classifier.input, settings, workers=0)
        for part in (training, training.sample(1, seed))
    )
    fit(Plan(classifier, data, watched, "accuracy", selects=False), settings, out, device=CPU)
    return {"from scratch": _judge(checkpoint.load(out).classifier, judged)}


Way = Callable[[Photographs, Photographs, int, Path], dict[str, Any]]
WAYS: Mapping[str, Way] = {
    "fine-tuned": fine_tuned,
    "linear probe": linear_probe,
    "ten epochs": ten_epochs,
    "from scratch": from_scratch,
}


def measure(name: str, way: str, run: dict[str, Any]) -> None:
    """Add to a run what one way gets right on one set, drawn from the run's seed."""
    seed = run["seed"]
    with tempfile.TemporaryDirectory() as folder:
        training, judged = (
            scan(write(draw(np.random.default_rng(seed)), Path(folder) / kind), "fail")
            for kind, draw in (("training", SETS[name].training), ("judged", SETS[name].judged))
        )
        run |= {"training": sum(training.counts), "judged": sum(judged.counts)}
        run |= WAYS[way](training, judged, seed, Path(folder) / "trained")


def _share(runs: Sequence[Mapping[str, Any]], column: str) -> str:
    """Return the mean and the range of a share over the seeds that have it, or a dash."""
    shares = [run[column] for run in runs if column in run]
    if len(shares) < 2:
        return f"{shares[0]:.1%}" if shares else "-"
    return f"{mean(shares):.1%} ({min(shares):.0%} to {max(shares):.0%})"


def page_part(result: Mapping[str, Any]) -> str:
    """Return the table for the page: means and ranges over the seeds; a dash where none ran."""
    rows = []
    for name in SETS:
        if runs := result["sets"].get(name):
            shares = [_share(runs, column) for column in COLUMNS]
            seconds = [run["cpu_seconds"] for run in runs if "cpu_seconds" in run]
            spent = f"{mean(seconds):.0f}" if seconds else "-"
            areas = [
                f"{mean(each):.3f}"
                if (each := [run[column] for run in runs if column in run])
                else "-"
                for column in MAP_COLUMNS
            ]
            judged, counted = str(runs[0]["judged"]), str(len(runs))
            rows.append([SETS[name].title, judged, counted, *shares, *areas, spent])
    headings = ["trained on", "judged by", "seeds", *COLUMNS, *MAP_COLUMNS, "CPU-seconds"]
    return pages.table(headings, rows)


def main() -> None:
    """Parse the command line, measure each set with each seed, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    before = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    sets: dict[str, list[dict[str, Any]]] = before.get("sets", {})
    machines = [*before.get("earlier_machines", []), *filter(None, [before.get("machine")])]
    described = machine.describe()
    result = {
        "benchmark": "finetuning",
        "network": NETWORK,
        "settings": {"ten epochs": TEN_EPOCHS, "from scratch": FROM_SCRATCH},
        "sets": sets,
        "machine": described,
        "earlier_machines": [each for each in machines if each != described],
    }
    for seed, name, way in product(range(options.seeds), options.sets, options.ways):
        runs = sets.setdefault(name, [])
        run = next((run for run in runs if run["seed"] == seed), {"seed": seed})
        if way in run:
            continue
        measure(name, way, run)
        if run not in runs:
            runs.append(run)
        console.print(name, seed, way, run[way])
        machine.save(result, options.out)
        if options.out == RESULTS:
            pages.write_part(PAGE, "finetuning", page_part(result))
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()
