"""How long `foveate serve` takes to be ready, and what it does in that time.

    python -m benchmarks.startup [--repository DIR] [--images DIR] [--rounds N] [--page FILE]

A server with EfficientNet-Lite0 alone, fp32 in ONNX Runtime, is started again and
again, and timed from the start of its process to the line that says that it
serves, and to its first answer, which is compared with the bare loop's. At the
line it must report SERVING. Between the starts a process of its own goes through
the same work stage by stage (`benchmarks.startup_stages`). The files lie in the
system's cache.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, script
from benchmarks.asking import Question, photographs
from benchmarks.request_cost import MODEL, summary
from benchmarks.server import HELD, Server, serving
from benchmarks.throughput import Samples
from foveate.v1.classifier_service_pb2 import ClassifyRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_runtime.options import option

RESULTS = Path(__file__).parent / "results" / "startup.json"
PAGE = pages.DOCS / "serving" / "scale.md"
WANTED = 1.5
READY, ANSWERED = "to the line that says that it serves", "to the first answer"


def start(repository: Path, question: Question, log: Path) -> dict[str, float]:
    """Start a server once; return the seconds to its line and to its first answer."""
    started = time.monotonic()
    with serving(repository, *HELD, log=log) as server:
        ready = time.monotonic() - started
        check(server, question)
        return {READY: ready, ANSWERED: time.monotonic() - started}


def check(server: Server, question: Question) -> None:
    """Ask the question, and whether the server serves."""
    with grpc.insecure_channel(server.address) as channel:
        request = ClassifyRequest.FromString(question.request)
        answer = ClassifierServiceStub(channel).Classify(request, timeout=30)
        assert answer.predictions[0].class_id == question.best
        health: Any = HealthStub(channel)
        status = health.Check(HealthCheckRequest(), timeout=30).status
        assert status == HealthCheckResponse.SERVING


def stages(bundle: Path) -> dict[str, float]:
    """Go through the stages once; return the seconds of each."""
    started = str(time.monotonic())
    command = [sys.executable, "-m", "benchmarks.startup_stages", str(bundle), started]
    found: dict[str, float] = json.loads(subprocess.check_output(command))
    return found


def measure(repository: Path, images: Path, rounds: int) -> dict[str, object]:
    """Alternate the starts and the stages."""
    load = os.getloadavg()[0]
    (bundle,) = (repository / MODEL).glob("[0-9]*")
    question, *_ = photographs(bundle, MODEL, images)
    whole, parts = Samples(), Samples()
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "repository"
        shutil.copytree(repository / MODEL, alone / MODEL)
        for number in track(range(rounds + 1), "rounds", console=Console(stderr=True)):
            found = start(alone, question, Path(folder) / "log"), stages(bundle)
            if number > 0:  # the first round brings the files into the cache
                whole.add(**found[0])
                parts.add(**found[1])
    return {
        "benchmark": "startup",
        "model": MODEL,
        "rounds": rounds,
        "seconds": {name: summary(values) for name, values in whole.values.items()},
        "stages": {name: summary(values) for name, values in parts.values.items()},
        "wanted": WANTED,
        # Above nothing, others were at work on the machine.
        "load_average_before": round(load, 2),
        "machine": machine.describe(),
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result."""
    about = (
        f"`foveate serve` with `{result['model']}`, fp32 in ONNX Runtime, on "
        f"{result['machine']['cores']} cores of an {result['machine']['processor']}; the load "
        f"average before was {result['load_average_before']:.1f}. Wanted is at most "
        f"{result['wanted']:g} s. Seconds from the start of the process, medians and the range of "
        f"{result['rounds']} starts:"
    )
    whole = [[name, pages.middle(values, 2)] for name, values in result["seconds"].items()]
    parts = [[name, pages.middle(values, 3)] for name, values in result["stages"].items()]
    return "\n\n".join(
        [
            textwrap.fill(about, 100),
            pages.table(["", "seconds"], whole),
            "The same work in a process that does nothing else:",
            pages.table(["", "seconds"], parts),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Options(script.Photographs):
    """The command line."""

    rounds: int = option("of starts", default=10)


def main() -> None:
    """Parse the command line, measure, write the results and print them."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    result = measure(options.repository, options.images, options.rounds)
    script.finish(result, page_part, options)


if __name__ == "__main__":
    main()
