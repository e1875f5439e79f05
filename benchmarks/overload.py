"""What a server still answers when it is asked for more than it can do.

python -m benchmarks.overload [--repository DIR] [--images DIR] [--seconds S] [--objective MS]

A real server and a real load generator (`foveate load`, open loop: it asks on,
whatever comes back) have cores of their own, so that neither takes from the
other: the first half of the machine's for the server, the rest for the
generator. The capacity is what the server answers to callers who wait for
their answers. Then it is asked for half of that, and for up to ten times as
much. Counted are the answers a second (goodput), the refusals, the 99th
percentile of the latency of what was answered, from the moment when the
request was due, and the processor time of both sides. The goodput at ten times
the capacity is compared with the highest that the same generator saw.

The generator must be able to ask so much: `late_ms_p99` tells how late it was.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine
from benchmarks.request_cost import MODEL, read_pictures, write_photographs
from benchmarks.server import Server, serving
from foveate_serve.instances import pinned

RESULTS = Path(__file__).parent / "results" / "overload.json"
PLOT = Path(__file__).parents[1] / "docs" / "images" / "overload.png"
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
CALLERS = 8
"""Callers who wait for their answers: enough to keep the engine busy, too few to be refused."""
WARMUP = 2.0
REFUSED = "RESOURCE_EXHAUSTED"
FOVEATE = Path(sys.executable).with_name("foveate")


def load(server: Server, images: Path, seconds: float, *arguments: str) -> dict[str, Any]:
    """Run the generator; return what it saw, and the processors' shares of both sides."""
    command = [FOVEATE, "load", images, "--address", server.address, "--model", MODEL, "--json"]
    options = ["--duration", str(seconds), "--warmup", str(WARMUP), "--connections", "4"]
    server_before, own_before = server.cpu_seconds(), generator_seconds()
    output = subprocess.run(
        [*command, *options, *arguments], stdout=subprocess.PIPE, check=False, text=True
    ).stdout
    elapsed = seconds + WARMUP
    (found,) = json.loads(output)["targets"]
    answered = found["latency_ms"] or {}
    refused = found["errors"].pop(REFUSED, 0)
    return {
        "goodput": round(found["rate"], 1),
        "refused": round(refused / seconds, 1),
        "other_errors": found["errors"],
        "p50_ms": round(answered.get("p50", 0.0), 1),
        "p99_ms": round(answered.get("p99", 0.0), 1),
        "late_ms_p99": round(found["generator_delay_ms"]["p99"], 1),
        "server_cores": round((server.cpu_seconds() - server_before) / elapsed, 2),
        "generator_cores": round((generator_seconds() - own_before) / elapsed, 2),
    }


def generator_seconds() -> float:
    """Return the processor time of the generators that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(repository: Path, images: Path, seconds: float, objective: float) -> dict[str, Any]:
    """Find the capacity, and put the loads on the server; `objective` is in milliseconds."""
    cores = sorted(os.sched_getaffinity(0))
    own, others = cores[: len(cores) // 2], cores[len(cores) // 2 :]
    flags = ("--latency-objective", str(objective / 1000))
    # An engine would count the machine's cores, and not those it is given.
    threads = ("--engine-threads", str(len(own)), "--image-threads", str(len(own)))
    steps = []
    with ExitStack() as stack:
        with pinned(frozenset(own)):
            server = stack.enter_context(serving(repository, *flags, *threads))
        stack.enter_context(pinned(frozenset(others)))
        capacity = load(server, images, seconds, "--concurrency", str(CALLERS))["goodput"]
        for share in track(LOADS, "loads", console=Console(stderr=True)):
            rate = share * capacity
            step = load(server, images, seconds, "--rate", str(rate))
            steps.append({"load": share, "offered": round(rate, 1), **step})
    peak = max(step["goodput"] for step in steps)
    last = steps[-1]
    return {
        "benchmark": "overload",
        "model": MODEL,
        "photographs": len(read_pictures(images)),
        "objective_ms": objective,
        "seconds": seconds,
        "server_cores": len(own),
        "generator_cores": len(others),
        "capacity": capacity,
        "peak_goodput": peak,
        "goodput_at_ten_times / peak": round(last["goodput"] / peak, 3),
        "p99_within_objective": all(step["p99_ms"] <= objective for step in steps),
        "loads": steps,
        "machine": machine.describe(),
    }


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Draw the goodput and the latency over the load."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    answers, latency = figure.subplots(1, 2)
    loads = [step["load"] for step in result["loads"]]
    goodput = [step["goodput"] for step in result["loads"]]
    answers.plot(loads, goodput, marker="o", label="answered")
    answers.axhline(0.9 * result["peak_goodput"], color="grey", ls=":", label="90 % of the peak")
    answers.set_ylabel("answers a second")
    for name in ("p50_ms", "p99_ms"):
        label = name.removesuffix("_ms")
        latency.plot(loads, [step[name] for step in result["loads"]], marker="o", label=label)
    latency.axhline(result["objective_ms"], color="grey", ls=":", label="objective for p99")
    latency.set_ylabel("milliseconds to an answer")
    for axes in (answers, latency):
        axes.set_xlabel("load, in capacities")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def report(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    columns = list(result["loads"][0])
    table = Table(*(column.replace("_", " ") for column in columns))
    for step in result["loads"]:
        table.add_row(*(str(step[column] or "") for column in columns))
    Console().print(table)
    for name in ("capacity", "peak_goodput", "goodput_at_ten_times / peak", "p99_within_objective"):
        Console().print(f"{name.replace('_', ' ')}: {result[name]}")


def main() -> None:
    """Parse the command line, measure, write the results and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path("demo-output/repository"))
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--objective", type=float, default=500.0, help="of the p99, in ms")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(options.images or write_photographs(Path(folder)))
        result = measure(options.repository, images, options.seconds, options.objective)
    machine.save(result, options.out)
    save_plot(result, options.plot)
    report(result)
    Console(stderr=True).print(f"written to {options.out} and {options.plot}")


if __name__ == "__main__":
    main()
