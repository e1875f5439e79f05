"""How faithful the maps are: curves of insertion and deletion, average drop and increase.

    python -m benchmarks.faithfulness BUNDLE [--images DIR | --digits N] [--steps N]

A folder of a checkpoint may stand in place of the bundle: its graph then runs in torch,
without being exported. `--digits` takes MNIST's first test digits in place of photographs.

`foveate_runtime.evaluation.faithfulness` says what is measured, and measures it. Here the
curves are kept and drawn. Drops and increases are in percent.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine
from benchmarks.request_cost import read_pictures
from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import MANIFEST_FILE, InputSpec
from foveate_runtime.evaluation.faithfulness import STEPS, Curves, Examiner, auc
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.transform import prepare

RESULTS = Path(__file__).parent / "results"

Picture = NDArray[np.uint8]


class InTorch:
    """The graph that a checkpoint would be exported as, run by torch: with the parts of a runner.

    Attributes:
        backend: the name of what computes.
        outputs: the names of the graph's outputs.
    """

    backend = "torch"

    def __init__(self, source: str) -> None:
        # Only here: a bundle needs no torch.
        import torch  # noqa: PLC0415

        from benchmarks import attention_networks  # noqa: F401, PLC0415 - registers them
        from foveate_export.exporter import examine  # noqa: PLC0415
        from foveate_export.graph.classifier import ExplainedClassifier  # noqa: PLC0415
        from foveate_export.sources import load_source  # noqa: PLC0415

        self._torch = torch
        self.classifier = load_source(source).classifier
        head = examine(self.classifier).head
        graph = ExplainedClassifier(self.classifier.module, self.classifier.input, head, [])
        self._graph = graph.eval()
        self.outputs = graph.output_names

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Return the graph's outputs; without classes the logits alone are computed."""
        given = [self._torch.from_numpy(np.ascontiguousarray(inputs["image"]))]
        if "class_ids" in inputs:
            given.append(self._torch.from_numpy(inputs["class_ids"]))
        with self._torch.no_grad():
            found = self._graph(*given)
        names = self.outputs if "class_ids" in inputs else ["logits"]
        values = {name: each.numpy() for name, each in zip(names, found, strict=False)}
        return {name: values[name] for name in outputs}


def summary(curves: Sequence[Curves]) -> dict[str, object]:
    """Return the measures of one method over all photographs, with standard errors of the means."""
    return {
        "insertion_auc": mean_of([auc(each.insertion) for each in curves]),
        "deletion_auc": mean_of([auc(each.deletion) for each in curves]),
        "average_drop_percent": mean_of([100 * each.drop for each in curves]),
        "increase_percent": round(100 * float(np.mean([each.increased for each in curves])), 1),
        "insertion": np.mean([each.insertion for each in curves], 0).round(4).tolist(),
        "deletion": np.mean([each.deletion for each in curves], 0).round(4).tolist(),
    }


def mean_of(values: Sequence[float]) -> dict[str, float]:
    """Return the mean and its standard error."""
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return {"mean": round(float(np.mean(values)), 4), "standard_error": round(float(error), 4)}


def draw(methods: Mapping[str, Mapping[str, object]], path: Path) -> None:
    """Draw the mean insertion and deletion curves side by side."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    titles = {"insertion": "pixels put back", "deletion": "pixels taken away"}
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for name, found in methods.items():
            curve = np.asarray(found[kind])
            # What was measured for one curve may be what was measured for another.
            style = {"cam": "-", "hirescam": "--", "gradcam": ":"}.get(name, "-")
            shares = np.linspace(0, 100, len(curve))
            axes.plot(shares, curve, style, label=name, linewidth=1.6)
        axes.set_xlabel(f"{title}, %, the map's highest first")
        axes.set_title(kind)
        axes.grid(alpha=0.3)
        axes.set_ylim(0, None)
    figure.axes[0].set_ylabel("probability of the explained class, mean")
    figure.axes[1].legend()
    figure.savefig(path, dpi=120)


def report(methods: Mapping[str, Mapping[str, object]]) -> Table:
    """Return the measures as a table."""
    table = Table("map", "insertion AUC", "deletion AUC", "average drop, %", "increase, %")
    for name, found in methods.items():
        means = [found[key] for key in ("insertion_auc", "deletion_auc", "average_drop_percent")]
        cells = [f"{m['mean']:.3f} ± {m['standard_error']:.3f}" for m in means[:2]]  # type: ignore[index]
        drop = means[2]
        cells.append(f"{drop['mean']:.1f} ± {drop['standard_error']:.1f}")  # type: ignore[index]
        table.add_row(name, *cells, f"{found['increase_percent']:.0f}")
    return table


def opened(
    path: Path, variant: str, backend: str | None, stack: ExitStack
) -> tuple[Runner | InTorch, str, InputSpec]:
    """Return what runs a bundle or a checkpoint, the name of its classifier, and its input."""
    if not (path / MANIFEST_FILE).exists():
        torch = InTorch(str(path))
        return torch, torch.classifier.name, torch.classifier.input
    bundle = Bundle.open(path)
    runner = stack.enter_context(create_runner(bundle, variant=variant, backend=backend))
    return runner, bundle.manifest.classifier, bundle.manifest.input


def photographs(folder: Path, spec: InputSpec, limit: int | None) -> tuple[list[Picture], str]:
    """Return the pictures of a folder as the server prepares them, and its name."""
    files = read_pictures(folder)[:limit]
    return [prepare(data, spec, ImageLimits())[0] for data in files], folder.name


def digits(count: int) -> tuple[list[Picture], str]:
    """Return MNIST's first test digits, uint8 [28, 28, 1] each, and what they are."""
    from foveate_train.data import mnist  # noqa: PLC0415 - a bundle of photographs needs no torch

    pictures, _ = mnist.load("test")
    return list(pictures[:count, :, :, None]), "MNIST test digits"


def main() -> None:
    """Parse the command line, measure, write the results and the plot, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    parser.add_argument("--digits", type=int, help="take so many of MNIST's test digits")
    parser.add_argument("--variant", default="fp32")
    parser.add_argument("--backend", help="default: the first installed")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--limit", type=int, help="take this many photographs")
    parser.add_argument("--out", type=Path, default=RESULTS / "faithfulness.json")
    options = parser.parse_args()
    if options.images is None and options.digits is None:
        parser.error("--images DIR is needed where FOVEATE_IMAGENET_DIR is not set")
    console = Console(stderr=True)
    with ExitStack() as stack:
        runner, name, spec = opened(options.bundle, options.variant, options.backend, stack)
        pictures, data = (
            digits(options.digits)
            if options.digits
            else photographs(Path(options.images), spec, options.limit)
        )
        began = time.monotonic()
        found: dict[str, list[Curves]] = {}
        examiner = Examiner(runner, spec, "softmax", options.steps)
        for number, picture in enumerate(track(pictures, "pictures", console=console)):
            for method, curves in examiner.curves(picture, number).items():
                found.setdefault(method, []).append(curves)
        backend = runner.backend
    methods = {name: summary(curves) for name, curves in found.items()}
    document = {
        "benchmark": "faithfulness",
        "model": name,
        "variant": options.variant,
        "backend": backend,
        "images": len(pictures),
        "data": data,
        "steps": options.steps,
        "seconds": round(time.monotonic() - began),
        "methods": methods,
        "machine": machine.describe(),
    }
    machine.save(document, options.out)
    draw(methods, options.out.with_suffix(".png"))
    Console().print(report(methods))
    console.print(f"written to {options.out} and {options.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
