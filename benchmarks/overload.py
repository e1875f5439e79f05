"""What a server still answers when it is asked for more than it can do.

python -m benchmarks.overload [--repository DIR] [--model NAME ...] [--images DIR]
                              [--seconds S] [--objective MS] [--page FILE]

A real server and a real load generator (`foveate load`, open loop: it asks on,
whatever comes back) have cores of their own, so that neither takes from the
other: the first half of the machine's for the server, the rest for the
generator. The capacity is what the server answers to callers who wait for
their answers, without an objective, so that none of them is refused. With the
objective it is then asked for half of that, and for up to ten times as much.
Counted are the answers a second (goodput), the refusals, the 99th
percentile of the latency of what was answered, from the moment when the
request was due, and the processor time of both sides. The goodput at ten times
the capacity is compared with the highest that the same generator saw. What an
answer and a refusal cost the server is what explains its processor time at all
loads best (least squares). A refusal costs the same whatever the model, so that
a heavier one, asked for ten times its capacity, spends less of its time on them.
The heavier loads are then put on once more by a generator that holds back from a
server that refuses (`--throttle`), as clients with Throttling do.

The generator must be able to ask so much: `late_ms_p99` tells how late it was.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine, pages
from benchmarks.request_cost import MODEL, read_pictures, write_photographs
from benchmarks.server import Server, serving
from foveate_runtime.cores import Cores, pinned

RESULTS = Path(__file__).parent / "results" / "overload.json"
PLOT = pages.DOCS / "images" / "overload.png"
PAGE = pages.DOCS / "serving" / "batching.md"
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
THROTTLED_LOADS = (2.0, 5.0, 10.0)
CALLERS = 8
"""Callers who wait for their answers: as many as a batch holds by default."""
WARMUP = 2.0
REFUSED = "RESOURCE_EXHAUSTED"
FOVEATE = Path(sys.executable).with_name("foveate")


def load(
    server: Server, model: str, images: Path, seconds: float, *arguments: str
) -> dict[str, Any]:
    """Run the generator; return what it saw, and the processors' shares of both sides."""
    command = [FOVEATE, "load", images, "--address", server.address, "--model", model, "--json"]
    options = ["--duration", str(seconds), "--warmup", str(WARMUP), "--connections", "4"]
    server_before, own_before = server.cpu_seconds(), generator_seconds()
    output = subprocess.run(
        [*command, *options, *arguments], stdout=subprocess.PIPE, check=False, text=True
    ).stdout
    elapsed = seconds + WARMUP
    (found,) = json.loads(output)["targets"]
    answered = found["latency_ms"] or {}
    held_back = found["held_back"]
    refused = found["errors"].pop(REFUSED, 0) - held_back
    return {
        "goodput": round(found["rate"], 1),
        "refused": round(refused / seconds, 1),
        "held_back": round(held_back / seconds, 1),
        "other_errors": found["errors"],
        "p50_ms": round(answered.get("p50", 0.0), 1),
        "p99_ms": round(answered.get("p99", 0.0), 1),
        "late_ms_mean": round(found["generator_delay_ms"]["mean"], 2),
        "late_ms_p99": round(found["generator_delay_ms"]["p99"], 1),
        "server_cores": round((server.cpu_seconds() - server_before) / elapsed, 2),
        "generator_cores": round((generator_seconds() - own_before) / elapsed, 2),
    }


def generator_seconds() -> float:
    """Return the processor time of the generators that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def serving_apart(repository: Path, *flags: str) -> Iterator[Server]:
    """Serve on the first half of the cores; what runs in the block has the others."""
    own, others = halves()
    # An engine would count the machine's cores, and not those it is given.
    threads = ("--engine-threads", str(len(own)), "--image-threads", str(len(own)))
    with ExitStack() as stack:
        with pinned(own):
            server = stack.enter_context(serving(repository, *threads, *flags))
        stack.enter_context(pinned(others))
        yield server


def halves() -> tuple[Cores, Cores]:
    """Return the cores of the server, and those of the generator."""
    cores = sorted(os.sched_getaffinity(0))
    return frozenset(cores[: len(cores) // 2]), frozenset(cores[len(cores) // 2 :])


def measure(
    repository: Path, model: str, images: Path, seconds: float, objective: float
) -> dict[str, Any]:
    """Find the capacity, and put the loads on the server; `objective` is in milliseconds."""
    with serving_apart(repository) as server:
        alone = load(server, model, images, seconds, "--concurrency", str(CALLERS))
    capacity = alone["goodput"]
    runs = [(share, ()) for share in LOADS]
    runs += [(share, ("--throttle",)) for share in THROTTLED_LOADS]
    found = []
    with serving_apart(repository, "--latency-objective", str(objective / 1000)) as server:
        for share, flags in track(runs, model, console=Console(stderr=True)):
            rate = share * capacity
            step = load(server, model, images, seconds, "--rate", str(rate), *flags)
            found.append({"load": share, "offered": round(rate, 1), **step})
    steps, throttled = found[: len(LOADS)], found[len(LOADS) :]
    peak = max(step["goodput"] for step in steps)
    answer_seconds, refusal_seconds = costs(steps)
    return {
        "model": model,
        "server_cores": len(halves()[0]),
        "generator_cores": len(halves()[1]),
        "capacity": capacity,
        "peak_goodput": peak,
        "goodput_at_ten_times / peak": round(steps[-1]["goodput"] / peak, 3),
        "throttled_at_ten_times / peak": round(throttled[-1]["goodput"] / peak, 3),
        "p99_within_objective": all(step["p99_ms"] <= objective for step in found),
        "server_cpu_ms": {
            "answer": round(1000 * answer_seconds, 2),
            "refusal": round(1000 * refusal_seconds, 3),
        },
        "loads": steps,
        "throttled_loads": throttled,
    }


def costs(steps: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the seconds of a core that an answer and a refusal cost the server."""
    made = np.array([[step["goodput"], step["refused"]] for step in steps])
    cores = np.array([step["server_cores"] for step in steps])
    answer, refusal = np.linalg.lstsq(made, cores)[0]
    return float(answer), float(refusal)


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result: a line and a table for each model."""
    objective = result["objective_ms"]
    about = (
        f"{result['photographs']} photographs in turn, {result['seconds']:g} s at each load, on an "
        f"{result['machine']['processor']}. The load is in capacities; rates are a second, and "
        f"latencies in milliseconds of an objective of {objective:g}."
    )
    return "\n\n".join([about, *(_model_part(found, objective) for found in result["models"])])


def _model_part(found: Mapping[str, Any], objective: float) -> str:
    cost = found["server_cpu_ms"]
    runs = [*((step, "") for step in found["loads"])]
    runs += [(step, ", throttled") for step in found["throttled_loads"]]
    late = [f"{step['load']:g}{how}" for step, how in runs if step["p99_ms"] > objective]
    kept = (
        f"beyond the objective at loads of {'; '.join(late)}"
        if late
        else "always within the objective"
    )
    about = (
        f"`{found['model']}` on {_cores(found['server_cores'])}, the generator on "
        f"{_cores(found['generator_cores'])}: at ten times its capacity, {found['capacity']:.1f} "
        f"answers a second, it keeps {found['goodput_at_ten_times / peak']:.0%} of its peak, and "
        f"{found['throttled_at_ten_times / peak']:.0%} where the generator holds back; the 99th "
        f"percentile is {kept}. An answer costs {cost['answer']:.1f} ms of processor time, a "
        f"refusal {cost['refusal']:.2f} ms."
    )
    rows = [
        [
            f"{step['load']:g}{how}",
            *(f"{step[name]:,.1f}" for name in ("offered", "goodput", "refused", "held_back")),
            *(f"{step[name]:,.0f}" for name in ("p50_ms", "p99_ms")),
        ]
        for step, how in runs
    ]
    head = ["load", "asked", "answered", "refused", "held back", "p50", "p99"]
    return f"{about}\n\n{pages.table(head, rows)}"


def _cores(count: int) -> str:
    return "one core" if count == 1 else f"{count} cores"


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Draw the goodput and the latency over the load, a row for each model."""
    models = result["models"]
    figure = Figure(figsize=(9, 4 * len(models)), layout="constrained")
    for (answers, latency), found in zip(
        figure.subplots(len(models), 2, squeeze=False), models, strict=True
    ):
        loads = [step["load"] for step in found["loads"]]
        goodput = [step["goodput"] for step in found["loads"]]
        answers.plot(loads, goodput, marker="o", label="answered")
        held = found["throttled_loads"]
        answers.plot(
            [step["load"] for step in held],
            [step["goodput"] for step in held],
            marker="s",
            ls="--",
            label="answered, clients hold back",
        )
        answers.axhline(0.9 * found["peak_goodput"], color="grey", ls=":", label="90 % of the peak")
        answers.set_ylabel(f"{found['model']}: answers a second")
        for name in ("p50_ms", "p99_ms"):
            label = name.removesuffix("_ms")
            latency.plot(loads, [step[name] for step in found["loads"]], marker="o", label=label)
        latency.axhline(result["objective_ms"], color="grey", ls=":", label="objective for p99")
        latency.set_ylabel("milliseconds to an answer")
        for axes in (answers, latency):
            axes.set_xlabel("load, in capacities")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.legend()
    figure.savefig(path, dpi=120)


def report(result: dict[str, Any]) -> None:
    """Print the result, a table for each model."""
    for found in result["models"]:
        columns = list(found["loads"][0])
        table = Table(
            *(column.replace("_", " ") for column in columns),
            title=found["model"],
            caption=", ".join(
                f"{name.replace('_', ' ')}: {value}"
                for name, value in found.items()
                if name not in {"model", "loads", "throttled_loads"}
            ),
        )
        for step in found["loads"] + found["throttled_loads"]:
            table.add_row(*(str(step[column] or "") for column in columns))
        Console().print(table)


def main() -> None:
    """Parse the command line, measure, write the results and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path("demo-output/repository"))
    parser.add_argument("--model", action="append", help=f"may be repeated; {MODEL} if not given")
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--objective", type=float, default=500.0, help="of the p99, in ms")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    parser.add_argument("--page", type=Path, default=PAGE, help="whose part is written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(options.images or write_photographs(Path(folder)))
        result = {
            "benchmark": "overload",
            "photographs": len(read_pictures(images)),
            "objective_ms": options.objective,
            "seconds": options.seconds,
            "models": [
                measure(options.repository, model, images, options.seconds, options.objective)
                for model in options.model or [MODEL]
            ],
            "machine": machine.describe(),
        }
    machine.save(result, options.out)
    save_plot(result, options.plot)
    pages.write_part(options.page, "overload", page_part(result))
    report(result)
    Console(stderr=True).print(f"written to {options.out}, {options.plot} and {options.page}")


if __name__ == "__main__":
    main()
