"""Exports the smallest member of every family of timm and torchvision, and writes what came of it.

    python -m benchmarks.coverage [--families WORD ...] [--jobs N] [--seconds N] [--gibibytes N]

A family is a module of the library; some kinds of heads and tokens within one stand as
families of their own. The smallest member by parameters is built with random weights, ten
classes and the smallest of `SIZES` that it takes, exported to one ONNX file, compared with
torch and its autograd through ONNX Runtime, and examined by a test of location of its own:
one corner of photographs is painted over, and in every exported layer's map the corner that
changes most has to be that one. Each family is a process of its own with limits of
processor time and memory. Families that the results have are passed over, so that an
interrupted run goes on where it stopped, and the networks of the fewest operations come
first; those that are named, by a part of their name, are
done again. The page alone is written by `python -m benchmarks.coverage_page`.
"""

import argparse
import json
import logging
import multiprocessing
import resource
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from rich.console import Console
from torchvision import models

from benchmarks import machine
from benchmarks.coverage_page import PAGE, RESULTS, page
from foveate_export.anatomy.ending import probes
from foveate_export.anatomy.logits import as_logits
from foveate_export.anatomy.pixels import normalise
from foveate_export.default_pictures import for_classifier
from foveate_export.errors import ExportError, RoundingError
from foveate_export.exporter import examine, export
from foveate_export.pictures import Pictures
from foveate_runtime.backends.base import Array
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.golden import open_golden
from foveate_runtime.bundle.manifest import CAM_PREFIX, FEATURES_PREFIX
from foveate_train import registry
from foveate_train.catalogue import available
from foveate_train.classifier import Classifier
from foveate_train.errors import ArgumentsError

SIZES = (128, 112, 160, 192, 224, 256, 288, 299, 320, 384, 448)
"""The sides to try, the smallest of each kind first; some networks take multiples alone."""

LEAST = {
    "timm:selecsls60": 224,
    "timm:inception_v3": 192,
    "timm:inception_v4": 192,
    "timm:inception_resnet_v2": 192,
    "torchvision:inception_v3": 192,
}
"""The side to begin at, of networks whose last map has 2 x 2 cells at less, each of which sees
nearly the whole picture: there no corner is the painted one."""

CLASSES = 10
PICTURES = 4
SECONDS = 240
GIBIBYTES = 6

_FORKING = threading.Lock()

FIRST: Mapping[str, str] = {
    "Swin": "timm:swin_tiny_patch4_window7_224 window_size=4",
    "Swin V2": "timm:swinv2_tiny_window8_256 window_size=4",
    "ConvNeXt": "timm:convnext_atto",
    "ConvNeXt V2": "timm:convnextv2_atto",
    "ViT, class token": "timm:vit_tiny_patch16_224",
    "ViT, mean of tokens": "timm:vit_tiny_patch16_224 class_token=false global_pool=avg",
    "DeiT III": "timm:deit3_small_patch16_224",
    "BEiT V2": "timm:beitv2_base_patch16_224 depth=4",
    "EVA-02": "timm:eva02_tiny_patch14_224",
    "MaxViT": "timm:maxvit_rmlp_pico_rw_256",
    "MobileViT": "timm:mobilevit_xxs",
    "EfficientViT": "timm:efficientvit_b0",
    "EfficientFormer": "timm:efficientformer_l1",
    "PoolFormer": "timm:poolformer_s12",
    "FastViT": "timm:fastvit_t8",
    "RegNet": "timm:regnetx_002",
    "NFNet": "timm:dm_nfnet_f0",
    "EfficientNet V2": "timm:tf_efficientnetv2_b0",
    "MobileNetV4": "timm:mobilenetv4_conv_small_035",
    "GhostNet": "timm:ghostnet_100",
    "Mixer": "timm:mixer_s32_224",
    "XCiT": "timm:xcit_nano_12_p16_224",
    "CoAtNet": "timm:coatnet_pico_rw_224",
    "PVT V2": "timm:pvt_v2_b0",
    "DaViT": "timm:davit_tiny",
    "TinyViT": "timm:tiny_vit_5m_224",
    "ViT, registers": "timm:vit_tiny_patch16_224 reg_tokens=4",
    "ViT, attention pooling": "timm:vit_tiny_patch16_224 class_token=false global_pool=map",
    "DeiT, distilled": "timm:deit_tiny_distilled_patch16_224",
    "DINOv2, registers": "timm:vit_small_patch14_reg4_dinov2 depth=4",
    "CaiT": "timm:cait_xxs24_224 depth=4",
}
"""The families that people ask for first, and kinds of heads and tokens, each by a network."""


def families() -> dict[str, str]:
    """Return a network, with arguments, of every family: those of `FIRST` first.

    A module whose smallest network stands in `FIRST` is no family again.
    """
    sizes = {row["name"].partition(".")[0]: row["parameters"] for row in available()}

    def smallest(source: str, networks: Sequence[str]) -> str | None:
        known = [f"{source}:{network}" for network in networks if f"{source}:{network}" in sizes]
        return min(known, key=sizes.__getitem__, default=None)

    found = dict(FIRST)
    for module in timm.list_modules():
        network = smallest("timm", timm.list_models(module=module))
        if network and network not in FIRST.values():
            found[f"timm {module}"] = network
    builders: dict[str, list[str]] = {}
    for network in models.list_models(module=models):
        module = models.get_model_builder(network).__module__.rpartition(".")[2]
        builders.setdefault(module, []).append(network)
    for module, networks in builders.items():
        network = smallest("torchvision", networks)
        if network:
            found[f"torchvision {module}"] = network
    return found


def operations() -> dict[str, int]:
    """Return what one picture costs each network that a library has, by its name."""
    return {row["name"].partition(".")[0]: row["operations"] for row in available()}


def build(name: str, smaller: Mapping[str, Any] | None = None) -> Classifier:
    """Build a network at the smallest of `SIZES` that it runs at.

    Args:
        name: in the registry, and arguments behind it.
        smaller: further arguments, which no command line takes, such as depths.

    Raises:
        ArgumentsError: it runs at none.
    """
    network, *words = name.split()
    arguments = {**registry.parse_arguments(words), "num_classes": CLASSES, **(smaller or {})}
    said = "it takes no size"
    for size in SIZES[SIZES.index(LEAST.get(network, SIZES[0])) :]:
        for sized in ({"img_size": size}, {"image_size": size}, {}):
            try:
                classifier = registry.create(network, weights="random:0", **arguments, **sized)
            except (ArgumentsError, TypeError, AssertionError, ValueError) as error:
                said = str(error) if not sized else said
                continue
            spec = classifier.input.changed(height=size, width=size, resize=size)
            try:
                with torch.no_grad():
                    classifier.module(torch.zeros(2, spec.channels, size, size))
            except (RuntimeError, AssertionError, ValueError, TypeError) as error:
                said = str(error).partition("\n")[0]
                continue
            _draw_zeros(classifier.module)
            return replace(classifier, input=spec, arguments={})
    raise ArgumentsError(f"it runs at no size of {SIZES[0]} to {SIZES[-1]}: {said}")


def _settle(classifier: Classifier, pixels: torch.Tensor) -> bool:
    """Give batch norms the statistics of `pixels`, [N, C, H, W], as any training does."""
    norms = [m for m in classifier.module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        classifier.module(pixels)
    classifier.module.eval()
    return bool(norms)


def _draw_zeros(module: torch.nn.Module) -> None:
    """Draw the weights of layers that start at zero: behind such a head every map is zero."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and not weight.any():
            with torch.no_grad():
                weight.normal_(std=0.02, generator=generator)


def measure(
    name: str, folder: Path, smaller: Mapping[str, Any] | None = None, *, settled: bool = False
) -> dict[str, Any]:
    """Export one network, as `build` makes it, into `folder`.

    Where it magnifies rounding it is tried once more, `settled`: with batch norms that have the
    statistics of the pictures. Without, the values of some networks grow from block to block.
    Returns its row, or the sentence why there is none.
    """
    try:
        classifier = build(name, smaller)
        spec = classifier.input
        row: dict[str, Any] = {"network": name, "input": [spec.height, spec.width]}
        pictures = for_classifier(classifier)
        pictures = Pictures(pictures.images[:PICTURES], pictures.description)
        if settled:
            row["settled"] = _settle(classifier, normalise(pictures.images, spec))
        classifier, ending = as_logits(classifier, probes(pictures, spec))
        anatomy = examine(classifier)
        exported = export(
            classifier, repository=folder, name="it",
            pictures=pictures, ending=ending, anatomy=anatomy,
        )  # fmt: skip
    except RoundingError as error:
        if not settled:
            return measure(name, folder, smaller, settled=True)
        return {"network": name, "refused": " ".join(str(error).split())}
    except (ArgumentsError, ExportError) as error:
        return {"network": name, "refused": " ".join(str(error).split())}
    manifest = exported.manifest
    (variant,) = manifest.variants
    cams = {cam.method: cam for cam in manifest.cams}
    gradient = cams.get("gradcam")
    rms = {name: error for name, error in variant.parity.rms.items() if name.startswith("cam.")}
    measured = variant.tolerances.measure if variant.tolerances else "largest"
    worst = rms if measured == "rms" else variant.parity.cams
    bundle = Bundle.open(exported.path)
    return row | {
        "head": type(anatomy.head).__name__ if anatomy.head else None,
        "methods": list(cams),
        "layer": gradient.layer if gradient else None,
        "layout": gradient.layout if gradient else None,
        "cells": [gradient.height, gradient.width] if gradient else None,
        "layers": len(manifest.features),
        "measure": measured,
        "difference": max(worst.values(), default=None),
        "silent": silent(bundle),
        "misplaced": located(bundle, pictures.images),
        "note": exported.note,
    }


def silent(bundle: Bundle) -> list[str]:
    """Return the methods whose maps are zero in torch: equal ones would say nothing."""
    answers = open_golden(bundle)
    outputs = answers.outputs if answers else {}
    return [
        cam.method
        for cam in bundle.manifest.cams
        if not outputs[CAM_PREFIX + cam.method].largest.any()
    ]


def located(bundle: Bundle, images: NDArray[np.uint8]) -> list[str]:
    """Return the layers in whose map another corner changes most than the one painted over."""
    outputs = [FEATURES_PREFIX + feature.layer for feature in bundle.manifest.features]
    if not outputs:
        return []
    with create_runner(bundle, backend="onnxruntime") as runner:
        return misplaced(lambda given: runner.run({"image": given}, outputs), images, outputs)


def misplaced(
    run: Callable[[NDArray[np.uint8]], Mapping[str, Array]],
    images: NDArray[np.uint8],
    outputs: Sequence[str],
) -> list[str]:
    """Return those of `outputs`, maps [N, C, h, w], that put a changed corner elsewhere."""
    before = run(images)
    wrong: dict[str, None] = {}
    for corner, changed in _painted(images):
        after = run(changed)
        for output in outputs:
            cells = np.abs(after[output] - before[output]).sum((0, 1))
            rows, columns = (max(size // 3, 1) for size in cells.shape)
            parts = [
                cells[part].mean()
                for part in (
                    np.s_[:rows, :columns], np.s_[:rows, -columns:],
                    np.s_[-rows:, :columns], np.s_[-rows:, -columns:],
                )
            ]  # fmt: skip
            if min(cells.shape) > 1 and int(np.argmax(parts)) != corner:
                wrong[output.removeprefix(FEATURES_PREFIX)] = None
    return list(wrong)


def _painted(images: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield each corner, in the order of reading, and the pictures with noise painted on it."""
    generator = np.random.default_rng(0)
    height, width = (size // 4 for size in images.shape[1:3])
    for corner in range(4):
        top = 0 if corner < 2 else images.shape[1] - height
        left = 0 if corner % 2 == 0 else images.shape[2] - width
        changed = images.copy()
        part = changed[:, top : top + height, left : left + width]
        part[:] = generator.integers(0, 256, part.shape, dtype=np.uint8)
        yield corner, changed


def in_a_process(name: str, seconds: int, gibibytes: float) -> dict[str, Any]:
    """Measure a network in a process with limits; return its row, or why there is none.

    The process is forked, so that it need not import the libraries again, which takes
    as long as a small network.
    """
    context = multiprocessing.get_context("fork")
    # Alone: a process that another thread forks meanwhile would hold the pipe open.
    with _FORKING:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(name, seconds, gibibytes, sender))
        process.start()
        sender.close()
    try:
        row: dict[str, Any] = receiver.recv()
    except EOFError:
        row = {}
    process.join()
    if row:
        return row
    if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"network": name, "failed": f"it took more than {seconds} s of a processor"}
    return {"network": name, "failed": f"its process ended with {process.exitcode}"}


def _send(name: str, seconds: int, gibibytes: float, sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (int(gibibytes * 2**30),) * 2)
    warnings.simplefilter("ignore")
    logging.disable()
    try:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, Path(folder))
    except Exception as error:  # noqa: BLE001 - whatever a network raises is a row of its own
        row = {"network": name, "failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    used = resource.getrusage(resource.RUSAGE_SELF)
    sender.send(row | {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": used.ru_maxrss // 1024,
    })  # fmt: skip


def main() -> None:
    """Measure what is named or missing, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--families", nargs="+", metavar="WORD", default=[])
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--gibibytes", type=float, default=GIBIBYTES)
    options = parser.parse_args()
    console = Console(stderr=True)
    known = families()
    rows = json.loads(RESULTS.read_text("utf-8"))["families"] if RESULTS.exists() else {}
    named = [name for name in known if any(word in name for word in options.families)]
    wanted = named if options.families else [name for name in known if name not in rows]
    costs = operations()
    wanted.sort(key=lambda name: costs.get(known[name].partition(" ")[0], 0))
    with ThreadPoolExecutor(options.jobs) as pool:
        pending = {
            pool.submit(in_a_process, known[name], options.seconds, options.gibibytes): name
            for name in wanted
        }
        try:
            for number, done in enumerate(as_completed(pending), 1):
                name = pending[done]
                rows[name] = done.result()
                said = (
                    rows[name].get("refused") or rows[name].get("failed") or rows[name]["methods"]
                )
                console.print(f"{number} of {len(wanted)}: {name}: {said}", highlight=False)
                save(rows, list(known))
        finally:
            # Interrupted, it starts no more; without, there are none.
            pool.shutdown(cancel_futures=True)


def save(rows: Mapping[str, Mapping[str, Any]], known: Sequence[str]) -> None:
    """Write the results and the page, in the order of `known`."""
    report = {
        "benchmark": "coverage",
        "machine": machine.describe(),
        "timm": timm.__version__,
        "torchvision": version("torchvision"),
        "families": {name: rows[name] for name in known if name in rows},
        "of": len(known),
    }
    machine.save(report, RESULTS)
    PAGE.write_text(page(report), "utf-8")


if __name__ == "__main__":
    main()
