"""Whether a server's memory stays flat, and how much it takes.

    python -m benchmarks.memory [--repository DIR] [--images DIR] [--requests N] [--page FILE]

A server with a classifier of digits and EfficientNet-Lite0, fp32 in ONNX Runtime,
is asked `--requests` times from this process, 32 requests at once. One request in
fifty is a photograph, for which the engine and the decoder take far more memory:
of these every third is answered without maps, with raw ones of the five best
classes, and with overlays. After every thousand requests the resident set, the
open files and the threads of the server's whole process tree are read. The first
tenth of the requests warms up; from there on the growth is counted, and once more
over the last third: its rate is the slope of a line through what was read (least
squares). ONNX Runtime keeps the memory of its largest run, so that the resident set
rises by a step whenever more photographs meet in one than ever before.

A second server holds EfficientNet-Lite0 alone: its resident set when it says
that it serves, after photographs without maps, and with them, and after a pause.

Every answer is compared: a digit's with torch's, which its bundle keeps, a
photograph's with the bare loop's.
"""

import asyncio
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, script
from benchmarks.asking import DIGITS, OVERLAYS, RAW_MAPS, Question, ask, calls, digits, photographs
from benchmarks.request_cost import MODEL
from benchmarks.server import HELD, Server, serving
from foveate_client.load.driver import connect
from foveate_runtime.options import option
from foveate_serve.repository.idling import IDLE_SECONDS

RESULTS = Path(__file__).parent / "results" / "memory.json"
PLOT = pages.DOCS / "images" / "memory.png"
PAGE = pages.DOCS / "serving" / "scale.md"

CONCURRENCY = 32
CONNECTIONS = 4
STEP = 1000
"""Requests from one reading to the next."""
PHOTOGRAPHS_EVERY = 50
WARM_UP_SHARE = 0.1
ALONE = 600
"""Photographs that the second server is asked for, without maps and with them."""
PAUSE = IDLE_SECONDS + 2
"""After which the server has given back what it does not need."""
LIMIT_MB = 250

CAMS = (
    None,
    RAW_MAPS,
    OVERLAYS,
)


def read(server: Server) -> dict[str, float]:
    """Return the resident set in megabytes, the open files and the threads of the whole tree."""
    tree = server.tree()
    return {
        "megabytes": round(server.resident_bytes() / 1e6, 2),
        "files": sum(process.num_fds() for process in tree),
        "threads": sum(process.num_threads() for process in tree),
    }


def mixed(small: Sequence[Question], large: Sequence[Question]) -> Iterator[Question]:
    """Yield digits without end, and a photograph in the place of every fiftieth."""
    pictures = cycle(large)
    for number, digit in enumerate(cycle(small)):
        yield next(pictures) if number % PHOTOGRAPHS_EVERY == 0 else digit


async def follow(
    server: Server, questions: Iterator[Question], requests: int
) -> list[dict[str, float]]:
    """Ask so many questions; return what was read before, and after every thousand."""
    readings = [{"requests": 0, **read(server)}]
    async with connect(server.address, CONNECTIONS) as channels:
        ways = calls(channels)
        steps = range(STEP, requests + 1, STEP)
        for asked in track(steps, "thousands", console=Console(stderr=True)):
            await ask(ways, islice(questions, STEP), CONCURRENCY)
            readings.append({"requests": asked, **read(server)})
    return readings


async def alone(
    server: Server, plain: Sequence[Question], explained: Sequence[Question]
) -> dict[str, float]:
    """Return the resident set in megabytes: at first, after photographs, and after a pause."""
    found = {"when it serves": read(server)["megabytes"]}
    async with connect(server.address, CONNECTIONS) as channels:
        ways = calls(channels)
        for name, questions in (("photographs", plain), ("photographs with maps", explained)):
            await ask(ways, islice(cycle(questions), ALONE), CONCURRENCY)
            found[f"after {ALONE} {name}"] = read(server)["megabytes"]
    await asyncio.sleep(PAUSE)
    found[f"after {PAUSE:g} idle seconds"] = read(server)["megabytes"]
    return found


def growth(readings: Sequence[Mapping[str, float]], share: float) -> dict[str, float]:
    """Return how much was added after a share of the requests, in all and with every one."""
    warm = readings[round(share * (len(readings) - 1)) :]
    requests = [reading["requests"] for reading in warm]
    megabytes = [reading["megabytes"] for reading in warm]
    slope, _ = np.polyfit(requests, megabytes, 1)
    return {
        "from_request": requests[0],
        "megabytes": round(megabytes[-1] - megabytes[0], 2),
        "largest_less_smallest": round(max(megabytes) - min(megabytes), 2),
        "bytes_a_request": round(1e6 * float(slope), 1),
    }


def measure(repository: Path, images: Path, requests: int) -> dict[str, object]:
    """Follow both servers' memory."""
    (large,) = (repository / MODEL).glob("[0-9]*")
    (small,) = (repository / DIGITS).glob("[0-9]*")
    every_way = photographs(large, MODEL, images, CAMS)
    plain = every_way[:: len(CAMS)]
    explained = [question for n, question in enumerate(every_way) if n % len(CAMS)]
    with serving(repository, *HELD) as server:
        questions = mixed(digits(small, DIGITS), every_way)
        readings = asyncio.run(follow(server, questions, requests))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(repository / MODEL, Path(folder) / MODEL)
        with serving(Path(folder), *HELD) as server:
            found = asyncio.run(alone(server, plain, explained))
    return {
        "benchmark": "memory",
        "model": MODEL,
        "requests": requests,
        "photographs_every": PHOTOGRAPHS_EVERY,
        "concurrency": CONCURRENCY,
        "growth": growth(readings, WARM_UP_SHARE),
        "last_third": growth(readings, 2 / 3),
        "alone_megabytes": found,
        "limit_megabytes": LIMIT_MB,
        "readings": readings,
        "machine": machine.describe(),
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result."""
    grown, late, readings = result["growth"], result["last_third"], result["readings"]
    about = (
        f"{result['requests']:,} requests, {result['concurrency']} at once, to a server with a "
        f"classifier of digits and `{result['model']}`; one in {result['photographs_every']} is a "
        f"photograph, with and without maps. From the {grown['from_request']:,}th request to the "
        f"last the resident set of the process tree grows by {grown['megabytes']:.1f} MB and moves "
        f"within {grown['largest_less_smallest']:.1f} MB; a line through all readings rises by "
        f"{grown['bytes_a_request']:.0f} bytes a request, and one through their last third by "
        f"{late['bytes_a_request']:.0f}."
    )
    first, last = readings[0], readings[-1]
    names = {"megabytes": "resident set, MB", "files": "open files", "threads": "threads"}
    counts = [
        [name, *(f"{reading[key]:,.0f}" for reading in (first, last))]
        for key, name in names.items()
    ]
    alone_rows = [
        [name, f"{megabytes:,.0f}", f"under {result['limit_megabytes']}"]
        for name, megabytes in result["alone_megabytes"].items()
    ]
    return "\n\n".join(
        [
            textwrap.fill(about, 100),
            pages.table(["", "before the first", "after the last"], counts),
            f"A server with `{result['model']}` alone:",
            pages.table(["", "resident set, MB", "wanted"], alone_rows),
        ]
    )


def save_plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw the resident set over the requests."""
    readings = result["readings"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [reading["requests"] for reading in readings],
        [reading["megabytes"] for reading in readings],
    )
    axes.axvline(result["growth"]["from_request"], color="grey", ls=":", label="warmed up")
    axes.set_xlabel("requests")
    axes.set_ylabel("resident set, MB")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


@dataclass(frozen=True, kw_only=True)
class Options(script.Photographs):
    """The command line."""

    requests: int = option("to each server", default=100_000)
    plot: Path = option("the picture of the results", default=PLOT)


def main() -> None:
    """Parse the command line, measure, write the results and draw them."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    result = measure(options.repository, options.images, options.requests)
    script.finish(result, page_part, options)
    save_plot(result, options.plot)
    Console(stderr=True).print(f"drawn in {options.plot}")


if __name__ == "__main__":
    main()
