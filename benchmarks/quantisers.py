"""What other tools make of the same graph: NNCF and NVIDIA ModelOpt beside the export's int8.

    python -m benchmarks.quantisers BUNDLE [--images DIR] [--calibration DIR]
        [--nncf PYTHON] [--modelopt PYTHON] [--rounds N]

Each quantises the bundle's fp32 graph, on the same photographs, and leaves the same
nodes in float: those that explain, and the last layer, whose weights the maps read.
Only the recipe that the export uses for CPUs, the first, holds that layer in int8 as
well. The results are scored in ONNX Runtime on the photographs of --images: how many
are right, on how many fp32's best class stays, and the signal-to-noise ratio of the
logits. Timed is what answers a request, the logits and five maps, in both engines
through serve's runner; the recipes take turns, and of rounds in which nothing else
ran (`quiet`) the median of each turn's consecutive runs is compared with fp32's.

The other tools live in environments of their own, as they need other versions:
`uv venv DIR && uv pip install -p DIR/bin/python nncf openvino onnx` and
`uv pip install -p DIR/bin/python 'nvidia-modelopt[onnx]'`. One that is not named is
left out.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from rich.console import Console

from benchmarks import machine, pages, quiet
from benchmarks.request_cost import read_pictures
from benchmarks.variants import quartiles
from foveate_export.publish.variants import INT8, VARIANTS, file_name, unmeasured
from foveate_export.publish.variants.quantise import Scheme, candidates, find_trunk
from foveate_runtime.backends.base import Runner
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import Quantisation, VariantEntry
from foveate_runtime.evaluation.accuracy import prepared_batches
from foveate_runtime.evaluation.labelled import open_folder
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.transform import prepare

PAGE = pages.DOCS / "export" / "variants.md"
BACKENDS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
RESULTS = Path(__file__).parent / "results" / "quantisers.json"
CHILD = Path(__file__).parent / "rivals" / "quantise.py"
PACKAGES = {"nncf": "nncf", "modelopt": "nvidia-modelopt"}
TITLES = {
    "int8": "export, unsigned, the last layer as well (chosen for CPUs)",
    "int8-symmetric": "export, signed and symmetric (chosen for TensorRT)",
    "percentile": "ONNX Runtime, percentile 99.999, unsigned",
    "nncf": "NNCF, fast bias correction",
    "modelopt": "NVIDIA ModelOpt, entropy",
}
OUTPUTS = ("logits", "cam.cam")
RUNS = {1: 30, 8: 6}
"""The runs of one turn, by batch."""

WARM_UP = 4
BATCH = 4
"""The pictures that a tool calibrates on at once."""


class Batches(CalibrationDataReader):
    """The calibration pictures as ONNX Runtime reads them."""

    def __init__(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._feeds = (
            dict(zip(inputs, values, strict=True)) for values in zip(*inputs.values(), strict=True)
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the inputs of the next run, or None after the last."""
        return next(self._feeds, None)


def quantise(
    source: Path, folder: Path, images: NDArray[np.uint8], pythons: Mapping[str, Path]
) -> dict[str, float]:
    """Write each recipe's graph to `folder`; return the seconds that it took, by recipe."""
    graph = onnx.load(source).graph
    trunk = find_trunk(graph, "symmetric")
    quantised = {*trunk.between, *(node for layer in trunk.layers.values() for node in layer)}
    kept = [node.name for node in graph.node if node.name not in quantised]
    batches = len(images) // BATCH
    inputs = {
        "image": images[: batches * BATCH].reshape(batches, BATCH, *images.shape[1:]),
        "class_ids": np.full((batches, BATCH, 1), -1, dtype=np.int64),
    }
    (folder / "kept.json").write_text(json.dumps(kept), encoding="utf-8")
    np.savez(folder / "batches.npz", **inputs)

    def own(scheme: Scheme, target: Path) -> None:
        tries = candidates(source, target, images, scheme, stage=lambda _: nullcontext())
        next(tries)  # the first keeps no layer in float
        tries.close()

    def percentile(target: Path) -> None:
        quantize_static(
            source,
            target,
            Batches(inputs),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            nodes_to_quantize=sorted(quantised),
            extra_options={"WeightSymmetric": True, "CalibPercentile": 99.999},
        )

    def other(tool: str, target: Path) -> None:
        arguments = (source, target, folder / "batches.npz", folder / "kept.json")
        subprocess.run([pythons[tool], CHILD, tool, *arguments], check=True, stdout=sys.stderr)

    recipes: dict[str, Callable[[Path], None]] = {
        "int8": partial(own, INT8["int8"]),
        "int8-symmetric": partial(own, INT8["int8-symmetric"]),
        "percentile": percentile,
        **{tool: partial(other, tool) for tool in pythons},
    }
    seconds = {}
    for name, make in recipes.items():
        Console(stderr=True).print(f"quantising: {name}")
        began = time.perf_counter()
        make(folder / file_name(name))
        seconds[name] = round(time.perf_counter() - began, 1)
    return seconds


def entry(recipe: str) -> VariantEntry:
    """Return what a runner needs to know of a recipe's graph."""
    if recipe in VARIANTS:
        return unmeasured(recipe)
    return VariantEntry.model_construct(
        name=recipe,
        file=file_name(recipe),
        quantisation=Quantisation.model_construct(pairs_fit=False),
    )


def score(bundle: Bundle, recipes: Sequence[str], labelled: Path) -> dict[str, dict[str, Any]]:
    """Return the accuracy of each recipe in ONNX Runtime, and how near its logits are to fp32's."""
    batches = list(
        prepared_batches(open_folder(labelled, bundle.labels, None), bundle.manifest.input)
    )
    targets = np.concatenate([classes for _, classes in batches])
    logits = {}
    for name in ("fp32", *recipes):
        with create_runner(bundle, variant=name, backend="onnxruntime") as runner:
            answers = [runner.run({"image": images}, ["logits"])["logits"] for images, _ in batches]
        logits[name] = np.concatenate(answers).astype(np.float64)
    exact = logits["fp32"]
    return {
        name: {
            "right": int((values.argmax(1) == targets).sum()),
            "agree": int((values.argmax(1) == exact.argmax(1)).sum()),
            "sqnr_db": round(
                10 * float(np.log10(np.square(exact).mean() / np.square(values - exact).mean())), 1
            )
            if name != "fp32"
            else None,
            "megabytes": round(bundle.file(name).stat().st_size / 1e6, 1),
        }
        for name, values in logits.items()
    }


def take_turns(
    runners: Mapping[str, Runner], inputs: Mapping[str, NDArray[Any]], runs: int
) -> dict[str, float]:
    """Let every recipe run so many times in a row; return the seconds of the median runs."""
    medians = {}
    for name, runner in runners.items():
        seconds = []
        for _ in range(WARM_UP + runs):
            start = time.perf_counter()
            runner.run(inputs, OUTPUTS)
            seconds.append(time.perf_counter() - start)
        medians[name] = statistics.median(seconds[WARM_UP:])
    return medians


def measure_speed(
    bundle: Bundle, recipes: Sequence[str], images: NDArray[np.uint8], rounds: int
) -> list[dict[str, object]]:
    """Return how many times faster than fp32 each recipe is, by engine and batch."""
    rows: list[dict[str, object]] = []
    threads = len(os.sched_getaffinity(0))
    for backend in BACKENDS:
        with ExitStack() as stack:
            runners = {
                name: stack.enter_context(
                    create_runner(bundle, variant=name, backend=backend, threads=threads)
                )
                for name in ("fp32", *recipes)
            }
            for batch, runs in RUNS.items():
                Console(stderr=True).print(f"timing: {backend}, batch {batch}")
                inputs = {
                    "image": images[:batch],
                    "class_ids": np.tile(np.arange(-1, -6, -1), (batch, 1)),
                }
                one = partial(take_turns, runners, inputs, runs)
                one()  # compiles what these outputs need
                played = quiet.play(one, [], rounds)
                rows += [
                    {
                        "backend": backend,
                        "batch": batch,
                        "recipe": name,
                        "times_faster_than_fp32": quartiles(
                            [took["fp32"] / took[name] for took in played.results]
                        ),
                        "rounds_disturbed": played.disturbed,
                    }
                    for name in recipes
                ]
    return rows


def measure(
    bundle: Bundle, images: Path, calibration: Path, pythons: Mapping[str, Path], rounds: int
) -> dict[str, object]:
    """Quantise by every recipe, score and time the results."""
    pictures = np.stack(
        [
            prepare(data, bundle.manifest.input, ImageLimits())[0]
            for data in read_pictures(calibration)
        ]
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / file_name("fp32")
        shutil.copy(bundle.file("fp32"), source)
        seconds = quantise(source, folder, pictures, pythons)
        entries = [entry(recipe) for recipe in ("fp32", *seconds)]
        manifest = bundle.manifest.model_copy(update={"variants": tuple(entries)})
        made = Bundle(path=folder, manifest=manifest, labels=bundle.labels)
        scores = score(made, [*seconds], images)
        try:
            speed = measure_speed(made, [*seconds], pictures, rounds)
        except quiet.BusyError as error:
            Console(stderr=True).print(f"{error}; the results have no speeds")
            speed = []
    return {
        "benchmark": "quantisers",
        "model": bundle.manifest.classifier,
        "versions": {tool: version(python, tool) for tool, python in pythons.items()},
        "calibration_images": len(pictures),
        "rounds": rounds,
        "recipes": {name: {**row, "seconds": seconds.get(name)} for name, row in scores.items()},
        "speed": speed,
        "machine": machine.describe(),
    }


def version(python: Path, tool: str) -> str:
    """Return the version of a tool in the environment of `python`."""
    code = f"from importlib.metadata import version; print(version({PACKAGES[tool]!r}))"
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def page_part(result: Mapping[str, Any]) -> str:
    """Return the table of the recipes for the page."""
    speed = {
        (row["recipe"], row["backend"], row["batch"]): row["times_faster_than_fp32"]["median"]
        for row in result["speed"]
    }
    head = ["recipe", "right", "agree", "SQNR, dB", "MB", "made in, s"]
    head += [f"{name}, batch {batch}" for name in BACKENDS.values() for batch in RUNS]
    rows = [
        [
            title,
            *(str(result["recipes"][name][key]) for key in ("right", "agree", "sqnr_db")),
            *(f"{result['recipes'][name][key]:.1f}" for key in ("megabytes", "seconds")),
            *(
                f"{speed[name, backend, batch]:.2f}" if speed else ""
                for backend in BACKENDS
                for batch in RUNS
            ),
        ]
        for name, title in TITLES.items()
        if name in result["recipes"]
    ]
    return pages.table(head, rows)


def main() -> None:
    """Parse the command line, measure, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    parser.add_argument(
        "--calibration", type=Path, default=os.environ.get("FOVEATE_CALIBRATION_DIR")
    )
    for tool in PACKAGES:
        parser.add_argument(f"--{tool}", type=Path, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.images is None or options.calibration is None:
        parser.error("--images DIR and --calibration DIR are needed")
    pythons = {tool: python for tool in PACKAGES if (python := getattr(options, tool))}
    result = measure(
        Bundle.open(options.bundle),
        Path(options.images),
        Path(options.calibration),
        pythons,
        options.rounds,
    )
    machine.save(result, options.out)
    print(page_part(result))
    if options.out == RESULTS:
        pages.write_part(PAGE, "quantisers", page_part(result))


if __name__ == "__main__":
    main()
