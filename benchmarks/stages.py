"""Where a request's time goes: decoding, resizing, the queue, the engine, encoding, gRPC.

python -m benchmarks.stages [--repository DIR] [--images DIR] [--calibration DIR]
                            [--requests N] [--rounds N] [--page FILE]

Photographs and digits are sent to `foveate serve`, one at a time and 32 at once,
with `timing` set: what each answer says of its stages is what passed within the
server, and what is left of the time that the client waited is gRPC's, on both
sides and on the wire. Of the server's processor time a request, the parts are
what decoding, resizing and the engine take in a process that does nothing else
(`benchmarks.parts`), and the rest is what is left: gRPC, Python, the queue, and the
answer. The cases take turns in each round, and medians of the rounds are written.
Every answer is compared with the first of its picture.
"""

import asyncio
import os
import statistics
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, parts, script
from benchmarks.asking import OVERLAYS, Question, ask, calls
from benchmarks.digits import NAME as LENET
from benchmarks.digits import export_lenet, write_digits
from benchmarks.request_cost import MODEL, read_pictures
from benchmarks.server import HELD, Server, serving
from benchmarks.throughput import Target, export_chosen
from foveate.v1.classifier_service_pb2 import ClassifyRequest, ClassifyResponse
from foveate.v1.explanation_pb2 import CamOptions
from foveate_client.load.driver import connect
from foveate_runtime.options import option

RESULTS = Path(__file__).parent / "results" / "stages.json"
PAGE = pages.DOCS / "performance.md"

CONCURRENCIES = (1, 32)
CHOSEN = "a photograph, as chosen"
STAGES = ("decode", "queue", "infer", "encode")
DIGITS = 256


@dataclass(frozen=True, kw_only=True)
class Options(script.Calibrated):
    """The command line."""

    requests: int = option("of each case in a round", default=300)
    rounds: int = option("of all cases", default=5)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a server is asked, and the bundle that answers."""

    server: Server
    questions: Sequence[Question]
    bundle: Path
    pictures: Path
    times: int = 1
    """How often it is asked for one request of the others."""


def asked_of(
    server: Server, model: str, pictures: Sequence[bytes], cam: CamOptions | None = None
) -> list[Question]:
    """Return the pictures as requests, with the best classes of the first answers to them."""
    requests = [
        ClassifyRequest(model=model, encoded=data, cam=cam, timing=True) for data in pictures
    ]
    best = Target(server, requests).best()
    return [Question(x.SerializeToString(), y) for x, y in zip(requests, best, strict=True)]


@dataclass
class Times:
    """What the requests of a measurement took, in seconds, and what ran the last of them."""

    columns: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    backend: str = ""
    variant: str = ""

    def add(self, latency: float, answer: ClassifyResponse) -> None:
        """Note how long the client waited, and what the answer says of it."""
        timing = answer.timing
        for stage in STAGES:
            self.columns[stage].append(getattr(timing, stage).ToNanoseconds() / 1e9)
        self.columns["grpc"].append(latency - timing.total.ToNanoseconds() / 1e9)
        self.columns["all"].append(latency)
        self.backend, self.variant = timing.backend, timing.variant

    def medians_ms(self) -> dict[str, float]:
        """Return the medians in milliseconds."""
        return {name: round(1000 * statistics.median(x), 3) for name, x in self.columns.items()}


async def ask_all(case: Case, concurrency: int, count: int) -> Times:
    """Ask `count` times, so many at once."""
    times = Times()
    async with connect(case.server.address, 1) as channels:
        questions = islice(cycle(case.questions), count)
        await ask(calls(channels), questions, concurrency, times.add)
    return times


def measure_case(case: Case, requests: int) -> tuple[dict[str, dict[str, float]], float, Times]:
    """Return the medians of the stages, and of 32 at once the CPU-ms a request, and its times."""
    stages, cpu, times = {}, 0.0, Times()
    for concurrency in CONCURRENCIES:
        before = case.server.cpu_seconds()
        times = asyncio.run(ask_all(case, concurrency, case.times * requests))
        cpu = 1000 * (case.server.cpu_seconds() - before) / (case.times * requests)
        stages[str(concurrency)] = times.medians_ms()
    return stages, cpu, times


def measure_round(cases: Mapping[str, Case], requests: int) -> dict[str, dict[str, Any]]:
    """Measure every case once, and the parts of each engine and pictures once."""
    found: dict[str, dict[str, Any]] = {}
    known: dict[tuple[Path, str, str], dict[str, float]] = {}
    for name, case in cases.items():
        stages, cpu, times = measure_case(case, requests)
        engine = case.bundle, times.variant, times.backend
        if engine not in known:
            known[engine] = parts.measure(
                case.bundle, case.pictures, variant=times.variant, backend=times.backend
            )
        alone = known[engine]
        found[name] = {
            "backend": times.backend,
            "variant": times.variant,
            "stages_ms": stages,
            "cpu_ms": {**alone, "rest": cpu - sum(alone.values()), "all": cpu},
        }
    return found


def middle(rounds: Sequence[Any]) -> Any:
    """Return the medians of the numbers in what each round gave; the rest is that of the first."""
    first = rounds[0]
    if isinstance(first, dict):
        return {key: middle([one[key] for one in rounds]) for key in first}
    return first if isinstance(first, str) else round(statistics.median(rounds), 3)


@contextmanager
def running(options: Options) -> Iterator[dict[str, Case]]:
    """Start the servers, and return what they are asked."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (bundle,) = (options.repository / MODEL).glob("[0-9]*")
        export_chosen(folder / "chosen", options.calibration)
        lenet, digits = export_lenet(folder / "lenet"), folder / "digits"
        digits.mkdir()
        photographs = read_pictures(options.images)
        server = stack.enter_context(serving(options.repository, *HELD))
        chosen = stack.enter_context(serving(folder / "chosen"))
        small = stack.enter_context(serving(lenet.parents[1], "--engine-timeout", "0"))

        photograph: dict[str, Path] = {"bundle": bundle, "pictures": options.images}
        yield {
            "a photograph": Case(
                server=server, questions=asked_of(server, MODEL, photographs), **photograph
            ),
            "with five overlays": Case(
                server=server,
                questions=asked_of(server, MODEL, photographs, OVERLAYS),
                **photograph,
            ),
            CHOSEN: Case(
                server=chosen,
                questions=asked_of(chosen, MODEL, photographs),
                bundle=folder / "chosen" / MODEL / "1",
                pictures=options.images,
            ),
            "a digit": Case(
                server=small,
                questions=asked_of(small, LENET, write_digits(digits, DIGITS)),
                bundle=lenet,
                pictures=digits,
                times=10,
            ),
        }


def measure(options: Options) -> dict[str, Any]:
    """Measure every case."""
    load = os.getloadavg()[0]
    with running(options) as cases:
        rounds = [
            measure_round(cases, options.requests)
            for _ in track(range(options.rounds), "rounds", console=Console(stderr=True))
        ]
    return {
        "benchmark": "stages",
        "requests": options.requests,
        "rounds": options.rounds,
        "cases": middle(rounds),
        "load_average_before": round(load, 2),
        "machine": machine.describe(),
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result."""
    described, cases = result["machine"], result["cases"]
    about = (
        f"Medians of {result['rounds']} rounds of {result['requests']} requests, in ms, on "
        f"{described['cores']} cores of an "
        f"{described['processor']}, which the client takes its share of; the load average before "
        f"was {result['load_average_before']:.1f}. What was chosen is "
        f"{cases[CHOSEN]['variant']} in {cases[CHOSEN]['backend']}; the others are fp32 in "
        "onnxruntime."
    )
    waited = [
        [f"{name}, {'alone' if at == '1' else f'{at} at once'}"]
        + [f"{found[stage]:.2f}" for stage in (*STAGES, "grpc", "all")]
        for name, case in cases.items()
        for at, found in case["stages_ms"].items()
    ]
    costs = [
        [name, *(f"{case['cpu_ms'][part]:.2f}" for part in (*parts.PARTS, "rest", "all"))]
        for name, case in cases.items()
    ]
    return "\n\n".join(
        [
            textwrap.fill(about, 100),
            pages.table(
                ["", "decode, resize", "queue", "engine", "encode", "gRPC", "in all"], waited
            ),
            "CPU-ms of the server, 32 at once:",
            pages.table(["", "decode", "resize", "engine", "the rest", "in all"], costs),
        ]
    )


def main() -> None:
    """Parse the command line, measure, write the results and print them."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    script.finish(measure(options), page_part, options)


if __name__ == "__main__":
    main()
