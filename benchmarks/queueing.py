"""How many cores a load needs: a queueing simulation with the processor times that were measured.

    python -m benchmarks.queueing [--measure] [--repository DIR] [--images DIR] [--out FILE]

The simulation (simpy) has Poisson arrivals at one server. A picture takes a core for its
decoding and its share of gRPC, waits for a lane, is run in a batch with those that wait as
well, at most eight, and takes a core for its answer. Times are those of results/stages.json
and vary as a gamma distribution does. It is compared with what `benchmarks.overload` saw of a
server on cores of its own or, with `--measure`, with a server that is asked now, at three
loads.

From it follows how busy the cores may be for the 99th percentile to stay within an objective,
and so what a load needs of cores, of the network and of money, with the prices named here.
"""

import json
import random
import sys
import textwrap
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from benchmarks import machine, pages, script
from benchmarks.overload import CALLERS, halves, load, serving_apart
from benchmarks.request_cost import MODEL
from foveate_runtime.options import option

RESULTS = Path(__file__).parent / "results" / "queueing.json"
STAGES = Path(__file__).parent / "results" / "stages.json"
OVERLOAD = Path(__file__).parent / "results" / "overload.json"
PAGE = pages.DOCS / "scaling.md"

PICTURES = 20_000
"""Pictures of a simulation, the first tenth of which is not counted."""
VARIATION = 0.2
"""The standard deviation of a stage's time over its mean."""
LOADS = (0.3, 0.5, 0.7)
OBJECTIVE = 0.1
"""Seconds within which 99 of 100 pictures are to be answered."""
POD_CORES = 4
BUSY = tuple(share / 100 for share in range(30, 96, 5))
RATES = (1_000, 100_000, 10_000_000)

PICTURE_BYTES = 116_000
"""Of a photograph of ImageNet, as JPEG."""
ANSWER_BYTES = 1_000
CORE_HOUR = 0.04
"""Dollars for an hour of a core with 2 GiB, a rounded list price of large clouds."""
NETWORK_GBIT = 10
"""What a node takes in, in gigabits a second."""
NODE_CORES = 64


@dataclass(frozen=True, kw_only=True)
class Work:
    """Seconds of a core that a picture takes before the engine, in it, and after it."""

    before: float
    engine: float
    after: float
    max_batch: int = 8
    variation: float = VARIATION

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.before + self.engine + self.after

    def scaled(self, seconds: float) -> "Work":
        """Return the same stages with another sum."""
        share = seconds / self.seconds
        return Work(
            before=self.before * share,
            engine=self.engine * share,
            after=self.after * share,
            max_batch=self.max_batch,
            variation=self.variation,
        )


def simulate(work: Work, rate: float, cores: int, pictures: int = PICTURES) -> np.ndarray:
    """Return the seconds from arrival to answer of pictures that come at `rate` a second."""
    draw = random.Random(0)  # noqa: S311 - a simulation
    environment = simpy.Environment()
    core = simpy.Resource(environment, capacity=cores)
    waiting: simpy.Store = simpy.Store(environment)
    latencies: list[float] = []

    def takes(mean: float) -> float:
        if not work.variation or not mean:
            return mean
        shape = work.variation**-2
        return draw.gammavariate(shape, mean / shape)

    def busy(seconds: float) -> Generator[Any, Any, None]:
        with core.request() as own:
            yield own
            yield environment.timeout(seconds)

    def picture() -> Generator[Any, Any, None]:
        arrived = environment.now
        if work.before:
            yield environment.process(busy(takes(work.before)))
        done = environment.event()
        yield waiting.put(done)
        yield done
        if work.after:
            yield environment.process(busy(takes(work.after)))
        latencies.append(environment.now - arrived)

    def lane() -> Generator[Any, Any, None]:
        while True:
            batch = [(yield waiting.get())]
            with core.request() as own:
                yield own
                # What has come while it waited for its core rides along.
                while waiting.items and len(batch) < work.max_batch:
                    batch.append((yield waiting.get()))
                yield environment.timeout(sum(takes(work.engine) for _ in batch))
            for done in batch:
                done.succeed()

    def arrivals() -> Generator[Any, Any, None]:
        for _ in range(pictures):
            environment.process(picture())
            yield environment.timeout(draw.expovariate(rate))

    for _ in range(cores):
        environment.process(lane())
    environment.process(arrivals())
    environment.run()
    return np.array(latencies[pictures // 10 :])


def measured_work() -> Work:
    """Return the processor times of a photograph in fp32, from results/stages.json."""
    cpu = json.loads(STAGES.read_text("utf-8"))["cases"]["a photograph"]["cpu_ms"]
    return Work(
        before=(cpu["decode"] + cpu["resize"] + cpu["rest"] / 2) / 1000,
        engine=cpu["engine"] / 1000,
        after=cpu["rest"] / 2 / 1000,
    )


def compare(work: Work, found: Mapping[str, Any], cores: int, capacity: float) -> dict[str, Any]:
    """Return what a server showed at a load, and what the simulation says of it."""
    # The capacity says what a picture took of that machine's cores.
    simulated = simulate(work.scaled(cores / capacity), found["offered"], cores)
    p50, p99 = (1000 * float(value) for value in np.percentile(simulated, (50, 99)))
    return {
        "load": found["load"],
        "offered": found["offered"],
        "p50_ms": {"measured": found["p50_ms"], "simulated": round(p50, 1)},
        "p99_ms": {"measured": found["p99_ms"], "simulated": round(p99, 1)},
    }


def known(work: Work) -> list[dict[str, Any]]:
    """Compare with the loads below the capacity of `benchmarks.overload`."""
    (model,) = (m for m in json.loads(OVERLOAD.read_text("utf-8"))["models"] if m["model"] == MODEL)
    below = [step for step in model["loads"] if step["load"] < 1]
    return [compare(work, step, model["server_cores"], model["capacity"]) for step in below]


def asked_now(work: Work, repository: Path, images: Path, seconds: float) -> list[dict[str, Any]]:
    """Compare with a server that is asked at three loads."""
    found = []
    # Counted before this process takes the generator's half.
    cores = len(halves()[0])
    with serving_apart(repository) as server:
        callers = ("--concurrency", str(CALLERS))
        capacity = load(server, MODEL, images, seconds, *callers)["goodput"]
        for share in LOADS:
            rate = share * capacity
            step = load(server, MODEL, images, seconds, "--rate", str(rate))
            step |= {"load": share, "offered": round(rate, 1)}
            found.append(compare(work, step, cores, capacity))
    return found


def busiest(work: Work) -> float:
    """Return the share of a pod's cores that may be busy for the objective to be met."""
    within = 0.0
    for share in BUSY:
        latencies = simulate(work, share * POD_CORES / work.seconds, POD_CORES)
        if np.percentile(latencies, 99) > OBJECTIVE:
            break
        within = share
    return within


def needs(work: Work, busy: float) -> list[dict[str, float]]:
    """Return what each rate needs."""
    found = []
    for rate in RATES:
        cores = rate * work.seconds / busy
        gigabits = rate * (PICTURE_BYTES + ANSWER_BYTES) * 8 / 1e9
        found.append(
            {
                "pictures_a_second": rate,
                "cores": round(cores),
                "pods": int(-(-cores // POD_CORES)),
                "nodes_by_cores": int(-(-cores // NODE_CORES)),
                "gigabits_a_second": round(gigabits, 1),
                "nodes_by_network": int(-(-gigabits // NETWORK_GBIT)),
                "dollars_an_hour": round(cores * CORE_HOUR, 2),
                "dollars_a_million": round(cores * CORE_HOUR / (rate * 3600) * 1e6, 4),
            }
        )
    return found


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result."""
    compared = [
        [
            f"{step['load']:g} of the capacity, {step['offered']:,.1f} a second",
            *(f"{step[p][kind]:,.1f}" for p in ("p50_ms", "p99_ms") for kind in step[p]),
        ]
        for step in result["compared"]
    ]
    rows = [
        [
            f"{need['pictures_a_second']:,}",
            f"{need['cores']:,}",
            f"{need['pods']:,}",
            f"{need['nodes_by_cores']:,}",
            f"{need['gigabits_a_second']:,.1f}",
            f"{need['nodes_by_network']:,}",
            f"{need['dollars_an_hour']:,.2f}",
        ]
        for need in result["needs"]
    ]
    head = ["pictures a second", "cores", f"pods of {POD_CORES} cores"]
    head += [f"nodes of {NODE_CORES} cores", "Gbit/s in"]
    head += [f"nodes of {NETWORK_GBIT} Gbit/s", "dollars an hour"]
    about = (
        f"A photograph takes {1000 * result['seconds']:.1f} ms of a core. In a pod of {POD_CORES} "
        f"cores {result['busy']:.0%} of them may be busy for the 99th percentile to stay within "
        f"{1000 * OBJECTIVE:.0f} ms. With {CORE_HOUR} dollars for an hour of a core a million "
        f"photographs cost {result['needs'][0]['dollars_a_million']:.2f} dollars:"
    )
    return "\n\n".join(
        [
            "The simulation beside a server on cores of its own, in milliseconds:",
            pages.table(
                ["", "p50 measured", "p50 simulated", "p99 measured", "p99 simulated"], compared
            ),
            textwrap.fill(about, 100),
            pages.table(head, rows),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Options(script.Options):
    """The command line; photographs are sent with `measure`."""

    images: Path | None = script.folder(
        "the photographs", "FOVEATE_IMAGENET_DIR", needed="--measure" in sys.argv
    )
    measure: bool = option("measure a server now")
    seconds: float = option("of each load", default=20.0)


def main() -> int:
    """Simulate, and measure where that is asked for; return the exit code."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    work = measured_work()
    if options.measure:
        assert options.images is not None
        compared = asked_now(work, options.repository, options.images, options.seconds)
    else:
        compared = known(work)
    busy = busiest(work)
    result = {
        "benchmark": "queueing",
        "model": MODEL,
        "seconds": work.seconds,
        "measured_now": options.measure,
        "compared": compared,
        "objective": OBJECTIVE,
        "busy": busy,
        "needs": needs(work, busy),
        "machine": machine.describe(),
    }
    script.finish(result, page_part, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
