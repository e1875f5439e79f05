"""How much faster a variant is than fp32, in each engine.

python -m benchmarks.variants BUNDLE [--rounds N] [--images DIR]

Measured is the time of one run of serve's own runner, without decoding, with
the logits alone and with the class activation maps of the five best classes as
well, at batch 1 and 8. Each variant runs in a process of its own, on as many
threads as there are cores. The processes take turns, so that a drifting
machine does not favour one; of a turn the fastest run counts, since what else
the machine does only makes runs slower, and the ratios are taken turn by turn.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine
from benchmarks.request_cost import read_pictures
from foveate_serve.backends.registry import create_runner
from foveate_serve.bundle.bundle import Bundle
from foveate_serve.imaging.decode import ImageLimits
from foveate_serve.imaging.transform import prepare

RESULTS = Path(__file__).parent / "results" / "variants.json"
BACKENDS = ("onnxruntime", "openvino")
WORKLOADS = {"logits": ["logits"], "logits and 5 maps": ["logits", "cam.cam"]}
RUNS = {1: 20, 8: 5}
"""The runs of one turn, by batch."""

WARM_UP = 5


def child(bundle: Path, variant: str, backend: str, images: Path) -> None:
    """For each line of stdin, a workload and a batch, print the seconds of the fastest run."""
    opened = Bundle.open(bundle)
    pictures = read_pictures(images)[: max(RUNS)]
    pixels = np.stack([prepare(p, opened.manifest.input, ImageLimits())[0] for p in pictures])
    ranks = np.tile(np.arange(-1, -6, -1), (len(pixels), 1))
    threads = len(os.sched_getaffinity(0))
    with create_runner(opened, variant=variant, backend=backend, threads=threads) as runner:
        for line in sys.stdin:
            workload, batch = json.loads(line)
            outputs = WORKLOADS[workload]
            inputs = {"image": pixels[:batch]}
            if len(outputs) > 1:
                inputs["class_ids"] = ranks[:batch]
            seconds = []
            for _ in range(WARM_UP + RUNS[batch]):
                start = time.perf_counter()
                runner.run(inputs, outputs)
                seconds.append(time.perf_counter() - start)
            print(min(seconds[WARM_UP:]), flush=True)


def measure(bundle: Path, images: Path, rounds: int) -> dict[str, object]:
    """Let every variant take turns in each engine; return times and ratios."""
    variants = [entry.name for entry in Bundle.open(bundle).manifest.variants]
    assert variants[0] == "fp32", "ratios are to fp32, which must be the first variant"
    results = []
    for backend in BACKENDS:
        with ExitStack() as stack:
            runners = {
                variant: stack.enter_context(start(bundle, variant, backend, images))
                for variant in variants
            }
            for workload in WORKLOADS:
                for batch in RUNS:
                    samples: dict[str, list[float]] = {variant: [] for variant in variants}
                    title = f"{backend}, {workload}, batch {batch}"
                    for _ in track(range(rounds), title, console=Console(stderr=True)):
                        for variant, runner in runners.items():
                            samples[variant].append(ask(runner, workload, batch))
                    results += [
                        row(backend, workload, batch, variant, samples) for variant in variants
                    ]
    return {
        "benchmark": "variants",
        "model": Bundle.open(bundle).manifest.classifier,
        "rounds": rounds,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "results": results,
        "machine": machine.describe(),
    }


def start(bundle: Path, variant: str, backend: str, images: Path) -> "subprocess.Popen[str]":
    """Start the process of one variant in one engine."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.variants", bundle),
            *("--images", images, "--child", f"{variant}:{backend}"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(runner: "subprocess.Popen[str]", workload: str, batch: int) -> float:
    """Let a process take its turn; return the seconds of its fastest run."""
    assert runner.stdin is not None
    assert runner.stdout is not None
    print(json.dumps([workload, batch]), file=runner.stdin, flush=True)
    return float(runner.stdout.readline())


def row(
    backend: str, workload: str, batch: int, variant: str, samples: dict[str, list[float]]
) -> dict[str, object]:
    """Return one line of the results."""
    ratios = [a / b for a, b in zip(samples["fp32"], samples[variant], strict=True)]
    return {
        "backend": backend,
        "workload": workload,
        "batch": batch,
        "variant": variant,
        "milliseconds": quartiles([1000 * value for value in samples[variant]]),
        "times_faster_than_fp32": quartiles(ratios),
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the smallest value, the three quartiles and the largest value."""
    cut = np.percentile(values, [0, 25, 50, 75, 100])
    names = ("min", "lower", "median", "upper", "max")
    return {name: round(float(value), 3) for name, value in zip(names, cut, strict=True)}


def report(result: dict[str, object]) -> None:
    """Print the result as a table."""
    table = Table("engine", "workload", "batch", "variant", "ms", "times faster", "quartiles")
    rows = result["results"]
    assert isinstance(rows, list)
    for entry in rows:
        took, ratio = entry["milliseconds"], entry["times_faster_than_fp32"]
        table.add_row(
            entry["backend"],
            entry["workload"],
            str(entry["batch"]),
            entry["variant"],
            f"{took['median']:.2f}",
            f"{ratio['median']:.2f}",
            f"{ratio['lower']:.2f} to {ratio['upper']:.2f}",
        )
    Console().print(table)


def main() -> None:
    """Parse the command line, measure, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.images is None:
        parser.error("--images DIR is needed where FOVEATE_IMAGENET_DIR is not set")
    images = Path(options.images)
    if options.child:
        variant, _, backend = options.child.partition(":")
        child(options.bundle, variant, backend, images)
        return
    result = measure(options.bundle, images, options.rounds)
    machine.save(result, options.out)
    report(result)
    Console(stderr=True).print(f"written to {options.out}")


if __name__ == "__main__":
    main()
