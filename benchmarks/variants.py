"""How much faster a variant is than fp32, in each engine.

python -m benchmarks.variants BUNDLE [--rounds N] [--images DIR]

Measured is the time of one run of serve's own runner, without decoding, with
the logits alone and with the class activation maps of the five best classes as
well, at batch 1 and 8. Each variant runs in a process of its own, on as many
threads as there are cores. The processes take turns of consecutive runs, as a
server under load makes them; the first runs of a turn, which find the caches
filled by another process, are left out, and of the others the median counts.
The ratios are taken round by round, so that a drifting machine does not favour
a variant, over the rounds in which nothing else ran (`quiet`).

What other guests of a virtual machine's host take is not to be seen from inside, and
costs the many short layers of an int8 graph more than the long ones of fp32. So the
fastest runs of all are compared too: what each takes where nothing came between.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import machine, pages, quiet
from benchmarks.request_cost import read_pictures
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.transform import prepare

PAGE = pages.DOCS / "export" / "variants.md"
RESULTS = Path(__file__).parent / "results" / "variants.json"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A backend, the environment it runs in, and how many times as fast as fp32 int8 is to be."""

    title: str
    backend: str
    aim: float
    environment: Mapping[str, str] = field(default_factory=dict)


ENGINES = {
    "onnxruntime": Engine(title="ONNX Runtime", backend="onnxruntime", aim=1.7),
    "openvino": Engine(title="OpenVINO", backend="openvino", aim=2),
    # oneDNN takes AMX for int8 where there is one; networks of small layers are quicker without.
    "openvino without AMX": Engine(
        title="OpenVINO without AMX",
        backend="openvino",
        aim=2,
        environment={"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    ),
}

WORKLOADS = {"logits": ["logits"], "logits and 5 maps": ["logits", "cam.cam"]}
RUNS = {1: 50, 8: 10}
"""The runs of one turn, by batch."""

WARM_UP = 5


def child(bundle: Path, variant: str, backend: str, images: Path) -> None:
    """For each line of stdin, a workload and a batch, print the seconds of its runs."""
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
            print(json.dumps(seconds[WARM_UP:]), flush=True)


def measure(bundle: Path, images: Path, rounds: int) -> dict[str, object]:
    """Let every variant take turns in each engine; return times and ratios."""
    variants = [entry.name for entry in Bundle.open(bundle).manifest.variants]
    assert variants[0] == "fp32", "ratios are to fp32, which must be the first variant"
    console = Console(stderr=True)
    results = []
    for name, engine in ENGINES.items():
        with ExitStack() as stack:
            runners = {
                variant: stack.enter_context(start(bundle, variant, engine, images))
                for variant in variants
            }
            processes = [runner.pid for runner in runners.values()]
            for workload in WORKLOADS:
                for batch in RUNS:
                    console.print(f"{name}, {workload}, batch {batch}")
                    one = partial(take_turns, runners, workload, batch)
                    one()  # compiles what these outputs need
                    played = quiet.play(one, processes, rounds)
                    results += [row(name, workload, batch, variant, played) for variant in variants]
    return {
        "benchmark": "variants",
        "model": Bundle.open(bundle).manifest.classifier,
        "rounds": rounds,
        "results": results,
        "machine": machine.describe(),
    }


def start(bundle: Path, variant: str, engine: Engine, images: Path) -> "subprocess.Popen[str]":
    """Start the process of one variant in one engine."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.variants", bundle),
            *("--images", images, "--child", f"{variant}:{engine.backend}"),
        ],
        env=os.environ | engine.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def take_turns(
    runners: "Mapping[str, subprocess.Popen[str]]", workload: str, batch: int
) -> dict[str, list[float]]:
    """Let every process take its turn; return the seconds of their runs."""
    return {variant: ask(runner, workload, batch) for variant, runner in runners.items()}


def ask(runner: "subprocess.Popen[str]", workload: str, batch: int) -> list[float]:
    """Let a process take its turn; return the seconds of its runs."""
    assert runner.stdin is not None
    assert runner.stdout is not None
    print(json.dumps([workload, batch]), file=runner.stdin, flush=True)
    seconds: list[float] = json.loads(runner.stdout.readline())
    return seconds


def row(
    engine: str,
    workload: str,
    batch: int,
    variant: str,
    played: quiet.Rounds[dict[str, list[float]]],
) -> dict[str, object]:
    """Return one line of the results."""
    medians = [
        {name: statistics.median(seconds) for name, seconds in turns.items()}
        for turns in played.results
    ]
    fastest = {
        name: min(min(turns[name]) for turns in played.results) for name in ("fp32", variant)
    }
    return {
        "engine": engine,
        "workload": workload,
        "batch": batch,
        "variant": variant,
        "milliseconds": quartiles([1000 * took[variant] for took in medians]),
        "times_faster_than_fp32": quartiles([took["fp32"] / took[variant] for took in medians]),
        "fastest_milliseconds": round(1000 * fastest[variant], 3),
        "fastest_times_faster_than_fp32": round(fastest["fp32"] / fastest[variant], 3),
        "rounds_disturbed": played.disturbed,
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the smallest value, the three quartiles and the largest value."""
    cut = np.percentile(values, [0, 25, 50, 75, 100])
    names = ("min", "lower", "median", "upper", "max")
    return {name: round(float(value), 3) for name, value in zip(names, cut, strict=True)}


def report(result: dict[str, object]) -> None:
    """Print the result as a table."""
    table = Table(
        "engine", "workload", "batch", "variant", "ms", "times faster", "quartiles", "fastest runs"
    )
    rows = result["results"]
    assert isinstance(rows, list)
    for entry in rows:
        took, ratio = entry["milliseconds"], entry["times_faster_than_fp32"]
        table.add_row(
            entry["engine"],
            entry["workload"],
            str(entry["batch"]),
            entry["variant"],
            f"{took['median']:.2f}",
            f"{ratio['median']:.2f}",
            f"{ratio['lower']:.2f} to {ratio['upper']:.2f}",
            f"{entry['fastest_times_faster_than_fp32']:.2f}",
        )
    Console().print(table)


def page_part(result: Mapping[str, Any]) -> str:
    """Return the table of the ratios for the page."""
    found = {
        (row["engine"], row["workload"], row["batch"], row["variant"]): row
        for row in result["results"]
    }
    rows = []
    for engine, workload, batch in dict.fromkeys(key[:3] for key in found):
        fp32, fp16, int8 = (
            found[engine, workload, batch, variant] for variant in ("fp32", "fp16", "int8")
        )
        ratio = int8["times_faster_than_fp32"]
        rows.append(
            [
                f"{ENGINES[engine].title}, {workload}, batch {batch}",
                f"{fp32['milliseconds']['median']:.1f}",
                f"{int8['milliseconds']['median']:.1f}",
                f"{fp16['times_faster_than_fp32']['median']:.2f}",
                f"{ratio['median']:.2f} ({ratio['lower']:.2f} to {ratio['upper']:.2f})",
                f"{int8['fastest_times_faster_than_fp32']:.2f}",
                f"{ENGINES[engine].aim:g}",
            ]
        )
    head = [
        *("", "fp32, ms", "int8, ms", "fp16 is faster"),
        *("int8 is faster (quartiles)", "fastest runs", "aim"),
    ]
    return pages.table(head, rows)


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
    try:
        result = measure(options.bundle, images, options.rounds)
    except quiet.BusyError as error:
        sys.exit(f"{error}; nothing was written")
    machine.save(result, options.out)
    report(result)
    if options.out == RESULTS:
        pages.write_part(PAGE, "variants", page_part(result))
    Console(stderr=True).print(f"written to {options.out}")


if __name__ == "__main__":
    main()
