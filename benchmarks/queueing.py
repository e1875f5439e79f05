"""How many cores a load needs: a queueing simulation with the times that were measured.

    python -m benchmarks.queueing [--repository DIR] [--images DIR] [--rounds N] [--seconds S]

The parts of a picture are measured first, on a server that has nothing else to do: decoding,
of each photograph; the engine, of batches of one to eight; what else the server's processor
does for a request; and what passes outside it, in the client and between. From these parts
the simulation (simpy) says what an open load sees. The server is then put under such loads,
and both are compared. Both have the same arrivals, and nothing is fitted to the latencies that
are compared.

The simulated cores are shared as the kernel shares them: by the weights of the threads' nice
levels. As many pictures are decoded at once as there are cores. A lane takes what waits, at
most a batch, as soon as its last one is done.

From it follows how busy the cores may be for the 99th percentile to stay within an objective,
and so what a load needs of cores, of the network and of money, with the prices named here.
"""

import asyncio
import math
import random
import statistics
import sys
import textwrap
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import simpy
from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, script
from benchmarks.asking import Question, ask, calls
from benchmarks.overload import CALLERS, WARMUP, halves, load, serving_apart
from benchmarks.request_cost import MODEL, read_pictures
from benchmarks.server import HELD, Server
from benchmarks.stages import asked_of
from foveate.v1.classifier_service_pb2 import ClassifyResponse
from foveate_client.load.driver import connect, poisson_times
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.cores import Cores, pinned
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.transform import prepare
from foveate_runtime.options import option

RESULTS = Path(__file__).parent / "results" / "queueing.json"
PAGE = pages.DOCS / "scaling.md"

_, BACKEND, _, VARIANT = HELD
PERCENTILES = ("p50_ms", "p99_ms")
KINDS = ("measured", "simulated")
MAX_BATCH = 8
PAUSES = (0.0, 0.005, 0.02, 0.05, 0.1)
"""Seconds before a picture that comes alone: processors' caches and clocks are warm for a while."""
RUNS = 12
"""Of each size of a batch."""
LOADS = (0.3, 0.5, 0.7)
OBJECTIVE = 0.1
"""Seconds within which 99 of 100 pictures are to be answered."""
PICTURES = 8_000
"""Pictures of a simulation of a pod, the first tenth of which is not counted."""
POD_CORES = 4
BUSY = tuple(share / 100 for share in range(30, 96, 5))
RATES = (1_000, 100_000, 10_000_000)

LOOP, ENGINE, DECODER = 1024, 335, 110
"""The kernel's weights of nice 0, 5 and 10 (sched_prio_to_weight, kernel/sched/core.c): see
`foveate_serve.niceness`."""

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
    """What a picture takes, in seconds of a core.

    Attributes:
        decode: of each picture, in the order in which they come.
        engine: of runs of one picture, of two and so on, several runs each.
        rest: of what else the server does for a picture, of several pictures; half of it
            is before the decoding.
        outside: a delay on no core of the server: the client's, and the way.
        idle: pauses before a picture, in seconds, rising from 0.
        cold: after each of these pauses, what a picture takes over what it takes without.
    """

    decode: Sequence[float]
    engine: Sequence[Sequence[float]]
    rest: Sequence[float] = (0.0,)
    outside: float = 0.0
    idle: Sequence[float] = (0.0,)
    cold: Sequence[float] = (1.0,)

    @property
    def seconds(self) -> float:
        """Seconds of a core that a picture takes in full batches."""
        engine = statistics.mean(self.engine[-1]) / len(self.engine)
        return statistics.mean(self.decode) + engine + statistics.mean(self.rest)


class Shared:
    """Cores that jobs share by their weights, none of which has more than one core."""

    def __init__(self, environment: simpy.Environment, count: int) -> None:
        self._environment = environment
        self._count = count
        # Of each job what is left of it, its weight and its present share of a core.
        self._jobs: dict[simpy.Event, list[float]] = {}
        self._since = 0.0
        self._idle_since = 0.0
        self._changes = 0
        self.used = 0.0
        """Seconds of cores so far."""

    @property
    def idle(self) -> float:
        """For how many seconds there has been no job."""
        return 0.0 if self._jobs else self._environment.now - self._idle_since

    def work(self, seconds: float, weight: float) -> simpy.Event:
        """Return an event that happens once a job has had so many seconds of a core."""
        self._advance()
        done = self._environment.event()
        self._jobs[done] = [seconds, weight, 0.0]
        self._share()
        return done

    def _advance(self) -> None:
        passed = self._environment.now - self._since
        self._since = self._environment.now
        for job in self._jobs.values():
            job[0] -= passed * job[2]
            self.used += passed * job[2]

    def _share(self) -> None:
        """Give each job its share, and wait until the first of them is done."""
        free, jobs = float(self._count), sorted(self._jobs.values(), key=lambda job: -job[1])
        total = sum(weight for _, weight, _ in jobs)
        for job in jobs:
            # The heaviest first: what one of them cannot use is shared by the others.
            job[2] = min(1.0, free * job[1] / total)
            free -= job[2]
            total -= job[1]
        self._changes += 1
        if jobs:
            first = min(max(left, 0.0) / share for left, _, share in jobs)
            timeout = self._environment.timeout(first, self._changes)
            timeout.callbacks.append(self._end)

    def _end(self, timeout: simpy.Event) -> None:
        if timeout.value != self._changes:
            return
        self._advance()
        for done, job in list(self._jobs.items()):
            if job[0] <= 1e-9:  # rounding
                del self._jobs[done]
                done.succeed()
        self._idle_since = self._environment.now
        self._share()


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What a simulation shows.

    Attributes:
        latencies: float64 [pictures], seconds from arrival to answer.
        busy: how many cores were busy, in the mean until the last arrival.
    """

    latencies: np.ndarray
    busy: float


def simulate(work: Work, arrivals: Sequence[float], count: int) -> Simulated:
    """Simulate pictures that arrive at these times, in seconds.

    The server has `count` cores, and as many decoders and lanes.
    """
    draw = random.Random(0)  # noqa: S311 - a simulation
    environment = simpy.Environment()
    cores = Shared(environment, count)
    decoders = simpy.Resource(environment, capacity=count)
    waiting: simpy.Store = simpy.Store(environment)
    most = max(1, len(work.engine) // count)
    idle = count
    latencies: dict[int, float] = {}

    def picture(number: int) -> Generator[Any, Any, None]:
        arrived = environment.now
        yield environment.timeout(work.outside / 2)
        cold = float(np.interp(cores.idle, work.idle, work.cold))
        rest = cold * draw.choice(work.rest) / 2
        yield cores.work(rest, LOOP)
        with decoders.request() as decoder:
            yield decoder
            yield cores.work(cold * work.decode[number % len(work.decode)], DECODER)
        done = environment.event()
        yield waiting.put((done, cold))
        yield done
        yield cores.work(rest, LOOP)
        yield environment.timeout(work.outside / 2)
        latencies[number] = environment.now - arrived

    def lane() -> Generator[Any, Any, None]:
        nonlocal idle
        while True:
            batch = [(yield waiting.get())]
            # The idle lanes share what waits.
            size = min(most, -(-(1 + len(waiting.items)) // idle))
            while waiting.items and len(batch) < size:
                batch.append((yield waiting.get()))
            idle -= 1
            cold = max(cold for _, cold in batch)
            yield cores.work(cold * draw.choice(work.engine[len(batch) - 1]), ENGINE)
            idle += 1
            for done, _ in batch:
                done.succeed()

    def arrive() -> Generator[Any, Any, None]:
        for number, due in enumerate(arrivals):
            yield environment.timeout(due - environment.now)
            environment.process(picture(number))

    for _ in range(count):
        environment.process(lane())
    environment.process(arrive())
    environment.run()
    return Simulated(
        latencies=np.array([latencies[number] for number in sorted(latencies)]),
        busy=cores.used / arrivals[-1],
    )


def measured_parts(server: Server, bundle: Path, images: Path, own: Cores) -> Work:
    """Measure what a picture takes of a server that has nothing else to do, on its `own` cores."""
    pictures = read_pictures(images)
    # Every second one: all parts of a round take a quarter of a minute.
    questions = asked_of(server, MODEL, pictures)[::2]
    alone = {pause: asyncio.run(ask_alone(server, questions, pause)) for pause in PAUSES}
    warm = alone[0.0]
    outside = max(warm.latency.mean() - warm.cpu, 0.0)
    rest = warm.latency - warm.decode - warm.engine - outside
    return Work(
        decode=warm.decode.tolist(),
        engine=[warm.engine.tolist(), *engine_seconds(bundle, pictures, own)],
        rest=rest.clip(min=0.0).tolist(),
        outside=outside,
        idle=PAUSES,
        cold=[found.cpu / warm.cpu for found in alone.values()],
    )


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What pictures took of which none met another, in seconds: float64 [pictures].

    `cpu` is the mean of the server's processor time.
    """

    latency: np.ndarray
    decode: np.ndarray
    engine: np.ndarray
    cpu: float


async def ask_alone(server: Server, questions: Sequence[Question], pause: float) -> Alone:
    """Ask the questions one at a time, each so many seconds after the last one's answer."""
    found: list[tuple[float, float, float]] = []

    def note(latency: float, answer: ClassifyResponse) -> None:
        timing = answer.timing
        stages = timing.decode.ToNanoseconds() / 1e9, timing.infer.ToNanoseconds() / 1e9
        found.append((latency, *stages))

    before = server.cpu_seconds()
    async with connect(server.address, 1) as channels:
        ways = calls(channels)
        for question in questions:
            await asyncio.sleep(pause)
            await ask(ways, [question], 1, note)
    cpu = (server.cpu_seconds() - before) / len(questions)
    latency, decode, engine = np.array(found).T
    return Alone(latency=latency, decode=decode, engine=engine, cpu=cpu)


def engine_seconds(path: Path, pictures: Sequence[bytes], own: Cores) -> list[list[float]]:
    """Return the seconds of runs of two pictures, of three and so on, on these cores."""
    bundle = Bundle.open(path)
    spec, limits = bundle.manifest.input, ImageLimits()
    pixels = np.stack([prepare(data, spec, limits)[0] for data in pictures[:MAX_BATCH]])
    found: dict[int, list[float]] = {size: [] for size in range(2, MAX_BATCH + 1)}
    create = partial(create_runner, bundle, variant=VARIANT, backend=BACKEND)
    with pinned(own), create(threads=len(own)) as runner:
        for _ in range(RUNS + 1):
            for size, taken in found.items():
                started = time.perf_counter()
                runner.run({"image": pixels[:size]}, outputs=["logits"])
                taken.append(time.perf_counter() - started)
    # The first run of a size prepares it.
    return [taken[1:] for taken in found.values()]


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a picture took in a round, and what the server showed at each load."""

    work: Work
    steps: Mapping[float, Mapping[str, Any]]


def measure(options: "Options") -> tuple[float, int, list[Round]]:
    """Return the capacity, the server's cores, and the rounds.

    Parts and loads are measured in turn: a machine is not as fast in every minute. The seed
    of a round's arrivals is its number.
    """
    (bundle,) = (options.repository / MODEL).glob("[0-9]*")
    # Counted before this process takes the generator's half.
    own = halves()[0]
    rounds = []
    with serving_apart(options.repository, *HELD) as server:
        callers = ("--concurrency", str(CALLERS))
        capacity = load(server, MODEL, options.images, options.seconds, *callers)["goodput"]
        for seed in track(range(options.rounds), "rounds", console=Console(stderr=True)):
            steps = {}
            work = measured_parts(server, bundle, options.images, own)
            for share in LOADS:
                flags = ("--rate", str(share * capacity), "--seed", str(seed))
                steps[share] = load(server, MODEL, options.images, options.seconds, *flags)
            rounds.append(Round(work=work, steps=steps))
    return capacity, len(own), rounds


def beside(
    rounds: Sequence[Round], cores: int, share: float, capacity: float, seconds: float
) -> dict[str, Any]:
    """Return what the server showed at a load, and what the simulation says of it."""
    simulated, busy = [], []
    steps = [found.steps[share] for found in rounds]
    for seed, found in enumerate(rounds):
        chance = random.Random(seed)  # noqa: S311 - the generator's own
        due = list(poisson_times(share * capacity, 0, WARMUP + seconds, chance))
        run = simulate(found.work, due, cores)
        busy.append(run.busy)
        counted = run.latencies[np.array(due) >= WARMUP]
        # The generator is late by itself, and counts from when a request was due.
        counted += steps[seed]["late_ms_mean"] / 1000
        simulated.append(1000 * np.percentile(counted, (50, 99)))
    told: dict[str, Any] = {"load": share, "offered": round(share * capacity, 1)}
    told["cores_busy"] = {
        "measured": statistics.median(step["server_cores"] for step in steps),
        "simulated": round(statistics.median(busy), 2),
    }
    for column, name in enumerate(PERCENTILES):
        kinds = {"measured": [step[name] for step in steps]}
        kinds["simulated"] = [float(round(values[column], 1)) for values in simulated]
        told[name] = {kind: statistics.median(values) for kind, values in kinds.items()}
        told[name] |= {f"{kind}_rounds": values for kind, values in kinds.items()}
    return told


def pooled(works: Sequence[Work]) -> Work:
    """Return the parts of all rounds together."""
    return Work(
        decode=[seconds for work in works for seconds in work.decode],
        engine=[
            [seconds for runs in sizes for seconds in runs]
            for sizes in zip(*(work.engine for work in works), strict=True)
        ],
        rest=[seconds for work in works for seconds in work.rest],
        outside=statistics.mean(work.outside for work in works),
        idle=works[0].idle,
        cold=[statistics.mean(each) for each in zip(*(work.cold for work in works), strict=True)],
    )


def steadily(rate: float) -> list[float]:
    """Return the times of `PICTURES` arrivals by chance, `rate` a second on average."""
    chance = random.Random(0)  # noqa: S311 - a simulation
    return list(islice(poisson_times(rate, 0, math.inf, chance), PICTURES))


def busiest(work: Work) -> float:
    """Return the share of a pod's cores that may be busy for the objective to be met."""
    within = 0.0
    for share in BUSY:
        run = simulate(work, steadily(share * POD_CORES / work.seconds), POD_CORES)
        if np.percentile(run.latencies[PICTURES // 10 :], 99) > OBJECTIVE:
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
            *(f"{step['cores_busy'][kind]:.2f}" for kind in KINDS),
            *(_spread(step[p], kind) for p in PERCENTILES for kind in KINDS),
        ]
        for step in result["compared"]
    ]
    away = [
        step[p]["simulated"] / step[p]["measured"] - 1
        for step in result["compared"]
        for p in PERCENTILES
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
    parts = result["parts_ms"]
    beside = (
        f"A photograph takes {parts['decode']:.1f} ms to decode, {parts['engine']:.1f} ms of the "
        f"engine alone and {parts['engine_in_full_batches']:.1f} ms in batches of {MAX_BATCH}, "
        f"{parts['rest']:.1f} ms for the rest of the server, and {parts['outside']:.1f} ms pass "
        f"outside it. The simulation of these parts beside a server on cores of its own, whose "
        f"capacity is {result['capacity']:.1f} a second; milliseconds, medians of "
        f"{result['rounds']} rounds and their range:"
    )
    off = (
        f"The simulation is between {min(away):+.0%} and {max(away):+.0%} away from the medians "
        f"that were measured, on an {result['machine']['processor']}."
    )
    about = (
        f"In full batches a photograph takes {1000 * result['seconds']:.1f} ms of a core. In a "
        f"pod of {POD_CORES} cores {result['busy']:.0%} of them may be busy for the 99th "
        f"percentile to stay within {1000 * OBJECTIVE:.0f} ms. With {CORE_HOUR} dollars for an "
        f"hour of a core a million photographs cost "
        f"{result['needs'][0]['dollars_a_million']:.2f} dollars:"
    )
    return "\n\n".join(
        [
            textwrap.fill(beside, 100),
            pages.table(
                [
                    "",
                    *(f"{what} {kind}" for what in ("cores busy", "p50", "p99") for kind in KINDS),
                ],
                compared,
            ),
            textwrap.fill(off, 100),
            textwrap.fill(about, 100),
            pages.table(head, rows),
        ]
    )


def _spread(found: Mapping[str, Any], kind: str) -> str:
    rounds = found[f"{kind}_rounds"]
    return f"{found[kind]:,.1f} ({min(rounds):,.1f} to {max(rounds):,.1f})"


@dataclass(frozen=True, kw_only=True)
class Options(script.Photographs):
    """The command line."""

    rounds: int = option("of all loads", default=3)
    seconds: float = option("of each load", default=20.0)


def main() -> int:
    """Measure the parts and the loads, simulate them, and return the exit code."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    capacity, cores, rounds = measure(options)
    compared = [beside(rounds, cores, share, capacity, options.seconds) for share in LOADS]
    work = pooled([found.work for found in rounds])
    busy = busiest(work)
    decode, engine, full = (
        statistics.mean(times) for times in (work.decode, work.engine[0], work.engine[-1])
    )
    parts = {
        "decode": decode,
        "engine": engine,
        "engine_in_full_batches": full / MAX_BATCH,
        "rest": statistics.mean(work.rest),
        "outside": work.outside,
    }
    result = {
        "benchmark": "queueing",
        "model": MODEL,
        "rounds": options.rounds,
        "seconds_a_load": options.seconds,
        "parts_ms": {name: round(1000 * value, 2) for name, value in parts.items()},
        "seconds": work.seconds,
        "capacity": capacity,
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
