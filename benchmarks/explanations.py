"""What explanations cost over logits alone, in ONNX Runtime, and against pytorch-grad-cam.

    python -m benchmarks.explanations --repository DIR [--grad-cam PYTHON] [--rounds N]

The models are exported into the repository where it lacks them: EfficientNet-Lite0
with its weights, ResNet-50, VGG-16 and ViT-Ti/16 with random ones. Their requests take turns,
round by round, on one picture, in another order each round, so that a slower spell
of the machine meets all of them alike. In its turn a request runs `REPEATS` times
and the fastest counts, since what else the machine does only makes runs slower; a
cost is the median over the rounds of its ratio to the logits of the same round.

PYTHON is an interpreter of an environment with grad-cam, torch and timm. It explains the
same five classes of the same architectures, in a process of its own, on as many
threads, and the same picture's size: five classes are five calls of pytorch-grad-cam,
as its targets are one a picture, or one call with the picture five times. The
faster of the two counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import machine
from foveate_runtime.backends.base import Array, Runner
from foveate_runtime.backends.graphs import MOST
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle

RESULTS = Path(__file__).parent / "results"
MODELS = {
    "efficientnet_lite0": ["package:efficientnet_lite0"],
    "resnet50": ["torchvision:resnet50", "--weights", "random:0"],
    "vgg16": ["torchvision:vgg16", "--weights", "random:0"],
    "vit_tiny": ["timm:vit_tiny_patch16_224", "--weights", "random:0"],
}
LIMITS = {"efficientnet_lite0": 1.05, "resnet50": 1.05, "vgg16": 1.12, "vit_tiny": 2.5}
"""What the maps of five classes by the default method may cost, as a ratio to logits."""

COMPARED = ("efficientnet_lite0", "resnet50", "vgg16")
"""The models that pytorch-grad-cam explains as well."""

THREADS = 2
WARM_UP = 3
REPEATS = 3

# Run by the other interpreter, which has torch and grad-cam and nothing of Foveate.
GRAD_CAM = """
import json, sys, time
import timm, torch, torchvision
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
torch.set_num_threads(int(sys.argv[3]))
if sys.argv[1] == "efficientnet_lite0":  # which torchvision has not
    model = timm.create_model("tf_efficientnet_lite0")
    layer = model.bn2
else:
    model = getattr(torchvision.models, sys.argv[1])()
    layer = model.features[-1] if sys.argv[1].startswith("vgg") else model.layer4[-1]
model.eval()
x = torch.randn(1, 3, 224, 224)
targets = [ClassifierOutputTarget(c) for c in range(5)]
times = {"logits": [], "five calls": [], "one call": []}
with GradCAM(model=model, target_layers=[layer]) as cam:
    def logits():
        with torch.no_grad():
            model(x)
    def five_calls():
        for target in targets:
            cam(input_tensor=x, targets=[target])
    def one_call():
        cam(input_tensor=x.repeat(5, 1, 1, 1), targets=targets)
    ways = {"logits": logits, "five calls": five_calls, "one call": one_call}
    for number in range(int(sys.argv[2]) + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                times[name].append(time.perf_counter() - start)
print(json.dumps(times))
"""


def requests(bundle: Bundle) -> dict[str, tuple[list[str], int]]:
    """Return the outputs and the number of classes of every request, by its name."""
    methods = [cam.method for cam in bundle.manifest.cams]
    features = [f"features.{feature.layer}" for feature in bundle.manifest.features]
    wanted: dict[str, tuple[list[str], int]] = {"logits": (["logits"], 0)}
    for method in methods:
        for count in (1, 5, 20):
            wanted[f"{method} of {count}"] = (["logits", f"cam.{method}"], count)
    wanted["feature maps"] = (["logits", *features], 0)
    return wanted


def groups(wanted: dict[str, tuple[list[str], int]]) -> list[list[str]]:
    """Split the requests so that one runner keeps the sessions of each group; all have logits."""
    kinds: dict[frozenset[str], list[str]] = {}
    for request, (outputs, _) in wanted.items():
        kinds.setdefault(frozenset(outputs), []).append(request)
    plain, *others = kinds.values()
    size = MOST - 2
    parts = [others[start : start + size] for start in range(0, len(others), size)]
    return [[*plain, *(request for kind in part for request in kind)] for part in parts]


def measure(bundle: Bundle, rounds: int, console: Console) -> dict[str, Any]:
    """Time every request of one model; return milliseconds, and ratios to logits."""
    spec = bundle.manifest.input
    generator = np.random.default_rng(0)
    size = (1, spec.height, spec.width, spec.channels)
    image = generator.integers(0, 256, size, dtype=np.uint8)
    wanted = requests(bundle)

    def run(runner: Runner, request: str, times: int) -> float:
        outputs, count = wanted[request]
        inputs: dict[str, Array] = {"image": image}
        if count:
            inputs["class_ids"] = -1 - np.arange(count, dtype=np.int64)[None]
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            runner.run(inputs, outputs)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    milliseconds: dict[str, float] = {}
    over: dict[str, dict[str, float]] = {}
    for group in groups(wanted):
        samples: dict[str, list[float]] = {request: [] for request in group}
        with create_runner(bundle, backend="onnxruntime", threads=THREADS) as runner:
            for request in group:
                run(runner, request, WARM_UP)
            for _ in track(range(rounds), bundle.manifest.name, console=console):
                for index in generator.permutation(len(group)):
                    samples[group[index]].append(run(runner, group[index], REPEATS))
        for request, seconds in samples.items():
            milliseconds.setdefault(request, round(1000 * statistics.median(seconds), 2))
            over.setdefault(request, ratios(seconds, samples["logits"]))
    return {"milliseconds": milliseconds, "over_logits": over}


def ratios(above: list[float], below: list[float]) -> dict[str, float]:
    """Return the quartiles of the ratios, round by round."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    cut = np.percentile(values, [25, 50, 75])
    names = ("lower", "median", "upper")
    return {name: round(float(value), 3) for name, value in zip(names, cut, strict=True)}


def grad_cam(python: Path, architecture: str, rounds: int) -> dict[str, float]:
    """Return pytorch-grad-cam's milliseconds for five classes, beside a bare forward pass's."""
    command = [python, "-c", GRAD_CAM, architecture, str(rounds), str(THREADS)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    times: dict[str, list[float]] = json.loads(said)
    return {name: round(1000 * statistics.median(values), 1) for name, values in times.items()}


def compared(found: dict[str, Any], theirs: dict[str, float], method: str) -> dict[str, Any]:
    """Return pytorch-grad-cam's figures, and how many times as long it takes for five classes.

    `whole` compares all of both; `explaining` what is spent beyond a forward
    pass of the same engine, which ours is too short to tell where it is 0.
    """
    ours = found["milliseconds"]
    best = min(theirs["five calls"], theirs["one call"])
    extra = ours[f"{method} of 5"] - ours["logits"]
    return {
        "milliseconds": theirs,
        "whole": round(best / ours[f"{method} of 5"], 1),
        "explaining": round((best - theirs["logits"]) / extra, 1) if extra > 0 else None,
    }


def markdown(result: dict[str, dict[str, Any]]) -> str:
    """Write one table a model."""
    lines = ["# What explanations cost over logits", ""]
    for name, found in result.items():
        lines += [f"## {name}", "", "| request | ms | over logits (quartiles) |", "|---|---|---|"]
        for request, ms in found["milliseconds"].items():
            over = found["over_logits"][request]
            lines.append(
                f"| {request} | {ms} | {over['median']:.3f} "
                f"({over['lower']:.3f} to {over['upper']:.3f}) |"
            )
        if "grad_cam" in found:
            theirs = found["grad_cam"]
            lines += [
                f"| pytorch-grad-cam: {way} | {ms} | |"
                for way, ms in theirs["milliseconds"].items()
            ]
            explaining = theirs["explaining"] or "beyond measure"
            lines += ["", f"pytorch-grad-cam takes {theirs['whole']} times as long in all, and "]
            lines[-1] += f"{explaining} times as long beyond the forward pass."
        five = next(r for r in found["over_logits"] if r.endswith(" of 5"))
        cost = found["over_logits"][five]["median"]
        limit = LIMITS[name]
        verdict = "within" if cost <= limit else "beyond"
        lines += ["", f"{five}: {cost:.3f}, {verdict} the limit of {limit}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Export what is missing, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--grad-cam", type=Path, metavar="PYTHON")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path, default=RESULTS / "explanations.json")
    options = parser.parse_args()
    console = Console(stderr=True)
    foveate = Path(sys.executable).with_name("foveate")
    found: dict[str, dict[str, Any]] = {}
    for name in options.models:
        if not (options.repository / name).is_dir():
            where = ["--repository", options.repository, "--name", name]
            subprocess.run([foveate, "export", *MODELS[name], *where], check=True)
        newest = max((options.repository / name).glob("[0-9]*"), key=lambda path: int(path.name))
        bundle = Bundle.open(newest)
        found[name] = measure(bundle, options.rounds, console)
        if options.grad_cam and name in COMPARED:
            theirs = grad_cam(options.grad_cam, name, max(3, options.rounds // 5))
            method = bundle.manifest.cams[0].method
            found[name]["grad_cam"] = compared(found[name], theirs, method)
    document = {
        "benchmark": "explanations",
        "rounds": options.rounds,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "models": found,
        "machine": machine.describe(),
    }
    machine.save(document, options.out)
    options.out.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
