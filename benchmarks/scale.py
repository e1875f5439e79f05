"""What a request costs with more workers, more models and more connections.

    python -m benchmarks.scale [--repository DIR] [--images DIR] [--rounds N] [--page FILE]

Servers stand beside each other: with 1, 2, 4 and 8 workers, with 1, 4, 16 and 64
models, which are the classifier of digits, or that of photographs, under so many
names, and with 1, 10, 100 and 1,000 connections from this process, each with a
subchannel of its own. Each round asks every one of them, one after another, in an
order that changes: 32 requests at once over all connections in turn, for digits and
for photographs, of the models for those of all of them in turn and then for digits of
one while the others idle, of the workers over one connection besides, which leaves all
but one of them idle. Taken are the CPU time of the server's whole process tree and the
time on the clock. What a request costs is set against the first of each kind
within a round: the median of the ratios, with its confidence interval.

Every answer is compared: a digit's with torch's, which its bundle keeps, a
photograph's with the bare loop's.
"""

import asyncio
import json
import os
import random
import shutil
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, script
from benchmarks.asking import DIGITS, Call, Question, ask, calls, digits, photographs
from benchmarks.feature_cost import CONFIDENCE, interval
from benchmarks.request_cost import MODEL, summary
from benchmarks.server import HELD, Server, serving
from benchmarks.throughput import Samples
from foveate.v1.classifier_service_pb2 import ClassifyRequest
from foveate_client.load.driver import connect
from foveate_runtime.bundle.manifest import MANIFEST_FILE
from foveate_runtime.options import option

RESULTS = Path(__file__).parent / "results" / "scale.json"
PAGE = pages.DOCS / "serving" / "scale.md"

WORKERS = (1, 2, 4, 8)
MODELS = (1, 4, 16, 64)
CONNECTIONS = (1, 10, 100, 1000)
CONCURRENCY = 32
SMALL, LARGE = 1000, 64
"""Digits, and photographs, that a server is asked for in a round."""
WANTED = 1.15

KINDS = {
    "workers, digits": ("workers", WORKERS),
    "workers, digits for one": ("workers", WORKERS),
    "workers, photographs": ("workers", WORKERS),
    "models, digits of all": ("models", MODELS),
    "models, digits of one": ("models", MODELS),
    "models, photographs of all": ("models", MODELS),
    "connections, digits": ("connections", CONNECTIONS),
    "connections, photographs": ("connections", CONNECTIONS),
}
"""What is counted, and how many there are of it, the first of which is compared with."""


@dataclass(frozen=True)
class Case:
    """A server, the ways to it, and what it is asked in a round."""

    server: Server
    ways: Sequence[Call]
    questions: Iterator[Question]
    count: int

    async def round(self) -> dict[str, float]:
        """Ask for a round's answers; return the rate and the CPU-ms a request."""
        questions = list(islice(self.questions, self.count))
        started, before = time.perf_counter(), self.server.cpu_seconds()
        await ask(self.ways, questions, CONCURRENCY)
        seconds, cpu = time.perf_counter() - started, self.server.cpu_seconds() - before
        return {"rate": self.count / seconds, "cpu_ms": 1000 * cpu / self.count}


def copies(bundle: Path, count: int, folder: Path) -> list[str]:
    """Copy a bundle into a repository so many times; return the names."""
    names = [f"copy-{number:02}" for number in range(count)]
    for name in names:
        copy = folder / name / bundle.name
        shutil.copytree(bundle, copy)
        manifest = json.loads((copy / MANIFEST_FILE).read_text(encoding="utf-8"))
        (copy / MANIFEST_FILE).write_text(json.dumps({**manifest, "name": name}), encoding="utf-8")
    return names


def spread(names: Sequence[str], questions: Sequence[Question]) -> Iterator[Question]:
    """Ask the questions in turn without end, each of the next model."""
    for name, question in zip(cycle(names), cycle(questions), strict=False):
        request = ClassifyRequest.FromString(question.request)
        request.model = name
        yield Question(request.SerializeToString(), question.best)


async def measure(repository: Path, images: Path, rounds: int) -> dict[str, object]:
    """Alternate the servers; return what a request costs in each, and how they compare."""
    load = os.getloadavg()[0]
    (large,) = (repository / MODEL).glob("[0-9]*")
    (small,) = (repository / DIGITS).glob("[0-9]*")
    numbers, pictures = digits(small, DIGITS), photographs(large, MODEL, images)
    cases: dict[str, Case] = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        async def ways(server: Server, connections: int) -> list[Call]:
            channels = await stack.enter_async_context(connect(server.address, connections))
            await asyncio.gather(*(channel.channel_ready() for channel in channels))
            return calls(channels)

        async def start(where: Path, connections: int, *flags: str) -> tuple[Server, list[Call]]:
            log = folder / "log"
            server = stack.enter_context(serving(where, *HELD, *flags, log=log))
            return server, await ways(server, connections)

        for number in WORKERS:
            server = await start(repository, CONCURRENCY, "--workers", str(number))
            cases[f"workers, digits: {number}"] = Case(*server, cycle(numbers), SMALL)
            cases[f"workers, photographs: {number}"] = Case(*server, cycle(pictures), LARGE)
            one = await ways(server[0], 1)
            cases[f"workers, digits for one: {number}"] = Case(
                server[0], one, cycle(numbers), SMALL
            )
        for number in MODELS:
            where = folder / f"digits-{number}"
            names = copies(small, number, where)
            server = await start(where, CONCURRENCY)
            cases[f"models, digits of all: {number}"] = Case(*server, spread(names, numbers), SMALL)
            cases[f"models, digits of one: {number}"] = Case(
                *server, spread(names[:1], numbers), SMALL
            )
            where = folder / f"photographs-{number}"
            names = copies(large, number, where)
            server = await start(where, CONCURRENCY)
            cases[f"models, photographs of all: {number}"] = Case(
                *server, spread(names, pictures), LARGE
            )
        for number in CONNECTIONS:
            server = await start(repository, number)
            cases[f"connections, digits: {number}"] = Case(*server, cycle(numbers), SMALL)
            cases[f"connections, photographs: {number}"] = Case(*server, cycle(pictures), LARGE)

        samples = await play(cases, rounds)
        resident = {name: case.server.resident_bytes() / 1e6 for name, case in cases.items()}
    return {
        "benchmark": "scale",
        "rounds": rounds,
        "concurrency": CONCURRENCY,
        "digits": SMALL,
        "photographs": LARGE,
        "confidence": CONFIDENCE,
        "wanted": WANTED,
        "kinds": {kind: about(kind, samples, resident) for kind in KINDS},
        # Above nothing, others were at work on the machine, and the rates are theirs as well.
        "load_average_before": round(load, 2),
        "machine": machine.describe(),
    }


async def play(cases: Mapping[str, Case], rounds: int) -> Samples:
    """Ask every server in every round, in an order that changes."""
    samples = Samples()
    chance = random.Random(0)  # noqa: S311 - an order, not a secret
    for number in track(range(rounds + 1), "rounds", console=Console(stderr=True)):
        for name in chance.sample(list(cases), len(cases)):
            found = await cases[name].round()
            if number > 0:  # the first round warms up
                samples.add(**{f"{name}: {key}": value for key, value in found.items()})
    return samples


def about(kind: str, samples: Samples, resident: Mapping[str, float]) -> list[dict[str, object]]:
    """Return what was measured for every number of a kind."""
    _, numbers = KINDS[kind]
    first = samples.values[f"{kind}: {numbers[0]}: cpu_ms"]
    return [
        {
            "number": number,
            "cpu_ms": summary(costs := samples.values[f"{kind}: {number}: cpu_ms"]),
            "ratio": interval(np.divide(costs, first)),
            "rate": summary(samples.values[f"{kind}: {number}: rate"]),
            "megabytes": round(resident[f"{kind}: {number}"], 1),
        }
        for number in numbers
    ]


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result: a table for each kind."""
    text = (
        f"Medians of {result['rounds']} rounds of {result['digits']:,} digits or "
        f"{result['photographs']} photographs, {result['concurrency']} at once, on "
        f"{result['machine']['cores']} cores of an {result['machine']['processor']}, which the "
        f"client takes its share of; the load average before was "
        f"{result['load_average_before']:.1f}. The ratio is that of the processor time of a "
        f"request to the first row's, with {result['confidence']:.0%} confidence; wanted is at "
        f"most {result['wanted']:g}. MB are the resident set of the process tree."
    )
    parts = [textwrap.fill(text, 100)]
    for kind, rows in result["kinds"].items():
        counted, _, asked = kind.partition(", ")
        head = [f"{counted} ({asked})", "CPU-ms a request", "ratio", "requests a second", "MB"]
        cells = [
            [
                f"{row['number']:,}",
                pages.middle(row["cpu_ms"], 2),
                "{median:.2f} ({low:.2f} to {high:.2f})".format_map(row["ratio"]),
                f"{row['rate']['median']:,.0f}",
                f"{row['megabytes']:,.0f}",
            ]
            for row in rows
        ]
        parts.append(pages.table(head, cells))
    return "\n\n".join(parts)


@dataclass(frozen=True, kw_only=True)
class Options(script.Photographs):
    """The command line."""

    rounds: int = option("of the comparison", default=15)


def main() -> None:
    """Parse the command line, measure, write the results and print them."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    result = asyncio.run(measure(options.repository, options.images, options.rounds))
    script.finish(result, page_part, options)


if __name__ == "__main__":
    main()
