"""What explanations cost over logits alone, in ONNX Runtime, and against pytorch-grad-cam.

    python -m benchmarks.explanations --repository DIR [--grad-cam PYTHON]

The models are exported into the repository where it lacks them: EfficientNet-Lite0
with its weights, ResNet-50 and VGG-16 with random ones. Their requests take turns,
round by round, on one picture, so that a slower spell of the machine meets all of
them alike; a cost is the median over the rounds of its ratio to the logits of the
same round. PYTHON is an interpreter of an environment with grad-cam and torch; it
explains the same five classes of the same architectures in turns of its own.
"""

import argparse
import json
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
from foveate_serve.backends.base import Array
from foveate_serve.backends.registry import create_runner
from foveate_serve.bundle.bundle import Bundle

RESULTS = Path(__file__).parent / "results"
MODELS = {
    "efficientnet_lite0": ["package:efficientnet_lite0"],
    "resnet50": ["torchvision:resnet50", "--weights", "random:0"],
    "vgg16": ["torchvision:vgg16", "--weights", "random:0"],
}
THREADS = 2

# Run by the other interpreter, which has torch and grad-cam and nothing of Foveate.
GRAD_CAM = """
import json, sys, time
import numpy as np, torch, torchvision
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
torch.set_num_threads(2)
model = getattr(torchvision.models, sys.argv[1])().eval()
layer = model.features[-1] if sys.argv[1].startswith("vgg") else model.layer4[-1]
x = torch.randn(1, 3, 224, 224)
times = {"logits": [], "cam5": []}
with GradCAM(model=model, target_layers=[layer]) as cam:
    for number in range(int(sys.argv[2]) + 1):
        start = time.perf_counter()
        with torch.no_grad():
            model(x)
        middle = time.perf_counter()
        for c in range(5):
            cam(input_tensor=x, targets=[ClassifierOutputTarget(c)])
        if number:
            times["logits"].append(middle - start)
            times["cam5"].append(time.perf_counter() - middle)
print(json.dumps(times))
"""


def requests(bundle: Bundle) -> dict[str, tuple[list[str], int]]:
    """Return the outputs and the number of classes of every request, by its name."""
    methods = [cam.method for cam in bundle.manifest.cams]
    features = [f"features.{feature.layer}" for feature in bundle.manifest.features]
    wanted: dict[str, tuple[list[str], int]] = {"logits": (["logits"], 1)}
    for count in (1, 5, 20):
        wanted[f"{methods[0]} of {count}"] = (["logits", f"cam.{methods[0]}"], count)
    for method in methods[1:]:
        wanted[f"{method} of 5"] = (["logits", f"cam.{method}"], 5)
    wanted["feature maps"] = (["logits", *features], 1)
    return wanted


def measure(repository: Path, name: str, rounds: int, console: Console) -> dict[str, Any]:
    """Time every request of one model; return medians in milliseconds and ratios to logits."""
    bundle = Bundle.open(next(iter(sorted((repository / name).glob("[0-9]*")))))
    spec = bundle.manifest.input
    generator = np.random.default_rng(0)
    size = (1, spec.height, spec.width, spec.channels)
    image = generator.integers(0, 256, size, dtype=np.uint8)
    wanted = requests(bundle)
    samples: dict[str, list[float]] = {request: [] for request in wanted}
    with create_runner(bundle, threads=THREADS) as runner:

        def timed(outputs: list[str], count: int) -> float:
            inputs: dict[str, Array] = {"image": image}
            if any(output.startswith("cam.") for output in outputs):
                inputs["class_ids"] = -1 - np.arange(count, dtype=np.int64)[None]
            start = time.perf_counter()
            runner.run(inputs, outputs)
            return time.perf_counter() - start

        for number in track(range(rounds + 1), name, console=console):
            for request, (outputs, count) in wanted.items():
                seconds = timed(outputs, count)
                if number > 0:  # the first round warms up
                    samples[request].append(seconds)
    return {
        "milliseconds": {r: round(1000 * statistics.median(s), 2) for r, s in samples.items()},
        "over_logits": {r: ratio(s, samples["logits"]) for r, s in samples.items()},
        "cam5_extra_ms": extra_ms(
            samples[next(r for r in samples if r.endswith(" of 5"))], samples
        ),
    }


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median of the ratios, round by round."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def extra_ms(explained: list[float], samples: dict[str, list[float]]) -> float:
    """Return the median of what a request takes more than logits, in milliseconds."""
    pairs = zip(explained, samples["logits"], strict=True)
    return round(1000 * statistics.median(a - b for a, b in pairs), 3)


def grad_cam(python: Path, architecture: str, rounds: int) -> dict[str, float]:
    """Return pytorch-grad-cam's milliseconds for five classes, beside a bare forward pass's."""
    command = [python, "-c", GRAD_CAM, architecture, str(rounds)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    times: dict[str, list[float]] = json.loads(said)
    return {name: round(1000 * statistics.median(values), 2) for name, values in times.items()}


def markdown(result: dict[str, dict[str, Any]]) -> str:
    """Write one table a model."""
    lines = ["# What explanations cost over logits", ""]
    for name, found in result.items():
        lines += [f"## {name}", "", "| request | ms | over logits |", "|---|---|---|"]
        lines += [
            f"| {request} | {ms} | {found['over_logits'][request]:.3f} |"
            for request, ms in found["milliseconds"].items()
        ]
        if "grad_cam" in found:
            lines.append(f"| pytorch-grad-cam, 5 classes | {found['grad_cam']['cam5']} | |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Export what is missing, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--grad-cam", type=Path, metavar="PYTHON")
    options = parser.parse_args()
    console = Console(stderr=True)
    foveate = Path(sys.executable).with_name("foveate")
    found: dict[str, dict[str, Any]] = {}
    for name, source in MODELS.items():
        if not (options.repository / name).is_dir():
            where = ["--repository", options.repository, "--name", name]
            subprocess.run([foveate, "export", *source, *where], check=True)
        found[name] = measure(options.repository, name, options.rounds, console)
        if options.grad_cam and name != "efficientnet_lite0":  # which torchvision has not
            found[name]["grad_cam"] = grad_cam(options.grad_cam, name, max(3, options.rounds // 5))
    RESULTS.mkdir(exist_ok=True)
    document = {"benchmark": "explanations", "models": found, "machine": machine.describe()}
    (RESULTS / "explanations.json").write_text(json.dumps(document, indent=2) + "\n")
    (RESULTS / "explanations.md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
