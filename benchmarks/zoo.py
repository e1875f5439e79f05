"""Exports every classifier of the zoo and writes what came of it, and docs/zoo.md from that.

    python -m benchmarks.zoo [CLASSIFIER ...]

Without names, the classifiers that the results lack are exported, so that an
interrupted run goes on where it stopped; those that are named are exported again.
Each export is a process of its own, `foveate export` as people type it, and so is
that of its engines; time and memory are what the system counts for the process. A
further word of a name is an argument of the classifier, such as
`'foveate:plain10 activation=mish'`. The page alone is written by
`python -m benchmarks.zoo_page`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import machine
from benchmarks.zoo_page import PAGE, RESULTS, page
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import LOGITS_OUTPUT
from foveate_train import registry
from foveate_train.counting import count

CAPABILITY = "8.9"

_STUDY = tuple(
    f"foveate:plain10 activation={activation} normalisation={normalisation}"
    for normalisation, activations in (
        ("none", ("sigmoid", "relu")),
        ("batch", ("sigmoid", "relu", "tanh", "leaky_relu", "relu6", "elu", "maxout", "mish")),
    )
    for activation in activations
)

CLASSIFIERS = (
    "foveate:lenet5",
    "foveate:convnet4",
    "foveate:convnet4 pool=false",
    "foveate:keras_cnn",
    *_STUDY,
    "foveate:residual42",
    "foveate:residual42 shortcut=false",
    "foveate:spectrogram_cnn",
    "foveate:go_policy",
    "foveate:alexnet",
    "foveate:zfnet",
    "foveate:nin",
    "foveate:resnet18",
    "foveate:mobilenet",
    "foveate:inception_v2",
    "package:efficientnet_lite0",
    "package:efficientnet_lite1",
    "package:efficientnet_lite2",
    "torchvision:alexnet",
    "torchvision:squeezenet1_0",
    "torchvision:squeezenet1_1",
    "torchvision:googlenet",
    "torchvision:inception_v3",
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:resnet152",
    "torchvision:densenet121",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b0",
    "torchvision:vgg11",
    "torchvision:vgg13",
    "torchvision:vgg16",
    "torchvision:vgg19",
    "timm:mobilenetv1_100",
    "timm:resnetv2_50",
    "timm:legacy_seresnet50",
    "timm:legacy_senet154",
    "timm:legacy_xception",
    "timm:inception_resnet_v2",
    "timm:nasnetalarge",
)


class Finished(NamedTuple):
    """A process that has ended: what it said, and what it cost."""

    code: int
    out: str
    last: str
    wall_seconds: float
    cpu_seconds: float
    peak_mib: int


def run(command: Sequence[str | Path], log: Path) -> Finished:
    """Run a command to its end; `log` takes its stderr."""
    started = time.monotonic()
    with log.open("w+", encoding="utf-8") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.stdout.close()
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = said.read().splitlines()
    return Finished(
        code=process.returncode,
        out=out,
        last=lines[-1] if lines else "",
        wall_seconds=round(time.monotonic() - started, 1),
        cpu_seconds=round(used.ru_utime + used.ru_stime, 1),
        peak_mib=used.ru_maxrss // 1024,
    )


def measure(classifier: str, folder: Path) -> dict[str, Any]:
    """Export one classifier into `folder` and return its row, or the reason why there is none."""
    name, *arguments = classifier.split()
    weights = "package" if name.startswith("package:") else "random:0"
    foveate = Path(sys.executable).with_name("foveate")
    command: list[str | Path] = [foveate, "export", name, "--repository", folder, "--name", "it"]
    command += [word for argument in arguments for word in ("--argument", argument)]
    command += [] if weights == "package" else ["--weights", weights]
    done = run([*command, "--json"], folder / "export.log")
    row: dict[str, Any] = {
        "weights": weights,
        "wall_seconds": done.wall_seconds,
        "cpu_seconds": done.cpu_seconds,
        "peak_mib": done.peak_mib,
    }
    if done.code:
        return row | {"refused": done.last}
    bundle = Bundle.open(folder / "it" / "1")
    manifest = bundle.manifest
    (variant,) = manifest.variants
    with torch.device("meta"):
        module = registry.create(
            name, weights="random:0", **registry.parse_arguments(arguments)
        ).module
    spec = manifest.input
    return row | {
        "opset": manifest.opset,
        "onnx_bytes": manifest.files[variant.file].size,
        "parameters": manifest.parameters,
        "operations": count(module, (spec.channels, spec.height, spec.width)).operations,
        "input": [spec.height, spec.width, spec.channels],
        "note": json.loads(done.out)["note"],
        "cams": {cam.method: [cam.layer, cam.height, cam.width] for cam in manifest.cams},
        "features": [feature.layer for feature in manifest.features],
        "pictures": f"{variant.parity.images} {variant.parity.data}",
        "logits_rms": variant.parity.rms[LOGITS_OUTPUT],
        "cams_largest": max(variant.parity.cams.values(), default=None),
        "features_largest": max(variant.parity.features.values(), default=None),
        "top1_agreement": variant.parity.top1_agreement,
        "engines": engines(bundle.path, folder / "engines.log"),
    }


def engines(bundle: Path, log: Path) -> dict[str, Any]:
    """Build TensorRT-RTX engines of a bundle; return their sizes, or why there are none."""
    foveate = Path(sys.executable).with_name("foveate")
    options = ["--flavour", "tensorrt_rtx", "--compute-capability", CAPABILITY, "--json"]
    done = run([foveate, "engines", bundle, *options], log)
    cost = {"cpu_seconds": done.cpu_seconds, "peak_mib": done.peak_mib}
    if done.code:
        return cost | {"refused": done.last}
    return cost | {
        "bytes": {sidecar["kind"]: sidecar["engine_size"] for sidecar in json.loads(done.out)}
    }


def main() -> None:
    """Export what is named or missing, one at a time, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("classifiers", nargs="*", metavar="CLASSIFIER")
    named = parser.parse_args().classifiers
    rows = json.loads(RESULTS.read_text("utf-8"))["classifiers"] if RESULTS.exists() else {}
    wanted = named or [name for name in CLASSIFIERS if name not in rows]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(wanted))
        for name in wanted:
            progress.update(task, description=name)
            with tempfile.TemporaryDirectory() as folder:
                rows[name] = measure(name, Path(folder))
            progress.console.print(name, rows[name].get("refused", "exported"), highlight=False)
            order = {known: index for index, known in enumerate(CLASSIFIERS)}
            rows = dict(sorted(rows.items(), key=lambda row: order.get(row[0], len(order))))
            report = {
                "benchmark": "zoo",
                "machine": machine.describe(),
                "compute_capability": CAPABILITY,
                "classifiers": rows,
            }
            machine.save(report, RESULTS)
            PAGE.write_text(page(report), "utf-8")
            progress.advance(task)


if __name__ == "__main__":
    main()
