"""The same classifiers behind Foveate and behind other servers, driven by `foveate load`.

    python -m benchmarks.comparison [--triton PYTHON] [--mlserver PYTHON] [--concurrency N]

Each PYTHON is an interpreter of an environment with that server (nvidia-pytriton,
which holds Triton's program, or mlserver with uvloop below 0.22, without which its
workers do not start), onnxruntime and Pillow. The others run
`benchmarks.rivals.classifier`, one worker a core, on the same ONNX file: they are
asked for the logits of picture files over the Open Inference Protocol, and Foveate
for the five best classes over its own. Two classifiers are compared: that of the
photographs, and LeNet-5 on digits, whose run costs next to nothing. For the
photographs a second Foveate has a bundle that is exported first with its int8
variant at the head, which it serves as it chooses by itself. For the digits, which
one Python process cannot answer on two cores, a second Foveate has a worker a core
as the others have. The servers' rounds alternate. Compared are requests a second
and the CPU-seconds of each server's whole process tree; the load comes from this
machine too. Before the clock starts, every server must agree with Foveate on the
best class of the pictures. The tables go into docs/client/load.md as well.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, script
from benchmarks.digits import export_lenet, write_digits
from benchmarks.request_cost import MODEL, ratio, read_pictures, summary
from benchmarks.rivals.servers import mlserver, triton
from benchmarks.server import Server, serving
from benchmarks.throughput import export_chosen
from foveate.inference.open_inference_pb2 import ModelInferResponse
from foveate_client import Client
from foveate_client.load.driver import connect
from foveate_client.load.workload import oip_workload
from foveate_runtime.options import argument, option

RESULTS = Path(__file__).parent / "results" / "comparison.json"
PAGE = pages.DOCS / "client" / "load.md"
RIVALS = {"triton": triton, "mlserver": mlserver}
OURS = {
    "foveate": "Foveate",
    "chosen": "Foveate, int8 as it chooses",
    "workers": "Foveate, a worker a core",
}
NAMES = {**OURS, "triton": "Triton's core", "mlserver": "MLServer"}
AGREEMENT = 0.97
"""At least, of the best classes with Foveate's: pixels may differ in the last digit."""
DIGITS = 1000
CONNECTIONS = 8
"""Workers share a port, and a connection stays with one of them."""
KEYS = ("requests_per_second", "cpu_ms_per_request", "p99_ms")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A classifier and its pictures.

    `chosen` is the repository of its int8 variant, `workers` whether a second Foveate has a
    worker a core.
    """

    about: str
    bundle: Path
    images: Path
    pictures: list[bytes]
    chosen: Path | None = None
    workers: bool = False

    @property
    def model(self) -> str:
        """The classifier's name."""
        return self.bundle.parent.name


@dataclass(frozen=True, kw_only=True)
class Options(script.Calibrated):
    """The command line: the other servers are those of `RIVALS`."""

    triton: Path | None = option("the Python with PyTriton", metavar="PYTHON")
    mlserver: Path | None = option("the Python with MLServer", metavar="PYTHON")
    concurrency: int = option("requests at a time", default=32)
    duration: float = option("seconds of each load", default=8.0)
    rounds: int = option("of the comparison", default=5)
    serve: tuple[str, ...] = argument("options of foveate serve", nargs="*", metavar="-- OPTION")


async def best_classes(address: str, subject: Subject) -> list[int]:
    """Return the class of the largest logit of each picture, over the Open Inference Protocol."""
    async with connect(address, 1) as (channel,):
        workload = await oip_workload(
            channel, subject.pictures, model=subject.model, output="logits", timeout=60
        )
        call = channel.unary_unary(
            workload.method, response_deserializer=ModelInferResponse.FromString
        )
        best = []
        for request in workload.requests["plain"]:
            answer = await call(request, timeout=60)
            best.append(int(_logits(answer).argmax()))
    return best


def own_best_classes(address: str, subject: Subject) -> list[int]:
    """Return the best class of each picture, of a Foveate."""
    with Client(address) as client:
        answers = [client.classify(picture, model=subject.model) for picture in subject.pictures]
    return [answer.predictions[0].class_id for answer in answers]


def _logits(answer: ModelInferResponse) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    if answer.raw_output_contents:
        return np.frombuffer(answer.raw_output_contents[0], dtype=np.float32)
    return np.array(answer.outputs[0].contents.fp32_contents, dtype=np.float32)


def load(server: Server, protocol: str, subject: Subject, options: Options) -> dict[str, float]:
    """Run `foveate load` once; return requests a second, CPU-ms a request and the p99 in ms."""
    foveate = Path(sys.executable).with_name("foveate")
    command: list[str | Path] = [
        *(foveate, "load", subject.images, "--address", server.address, "--protocol", protocol),
        *("--model", subject.model, "--concurrency", str(options.concurrency), "--json"),
        *("--duration", str(options.duration), "--warmup", "0"),
        *("--connections", str(CONNECTIONS)),
    ]
    start = server.cpu_seconds()
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    cpu = server.cpu_seconds() - start
    (target,) = json.loads(run.stdout)["targets"]
    assert not target["errors"], target["errors"]
    return {
        "requests_per_second": target["rate"],
        "cpu_ms_per_request": 1000 * cpu / target["completed"],
        "p99_ms": target["latency_ms"]["p99"],
    }


def measure(options: Options) -> dict[str, object]:
    """Compare the servers on photographs and on digits."""
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        chosen, digits = Path(folder) / "chosen", Path(folder) / "digits"
        export_chosen(chosen, options.calibration)
        digits.mkdir()
        subjects = [
            Subject(
                about="photographs",
                bundle=next(iter(sorted((options.repository / MODEL).glob("[0-9]*")))),
                images=options.images,
                pictures=read_pictures(options.images),
                chosen=chosen,
            ),
            Subject(
                about="digits",
                bundle=export_lenet(Path(folder) / "lenet"),
                images=digits,
                pictures=write_digits(digits, DIGITS),
                workers=True,
            ),
        ]
        compared = [compare(subject, options) for subject in subjects]
    return {
        "benchmark": "comparison",
        "concurrency": options.concurrency,
        "connections": CONNECTIONS,
        "serve": options.serve,
        "rounds": options.rounds,
        "subjects": compared,
        # Above nothing, others were at work on the machine, and the rates are theirs as well.
        "load_average_before": round(load_average, 2),
        "machine": machine.describe(),
    }


def compare(subject: Subject, options: Options) -> dict[str, object]:
    """Alternate the servers; return their figures and how Foveate's compare with the others'."""
    cores = len(os.sched_getaffinity(0))
    repository = subject.bundle.parents[1]
    with ExitStack() as stack:
        ours = stack.enter_context(serving(repository, *options.serve))
        targets = {"foveate": (ours, "foveate")}
        if subject.chosen is not None:
            targets["chosen"] = (stack.enter_context(serving(subject.chosen)), "foveate")
        if subject.workers:
            server = stack.enter_context(serving(repository, "--workers", str(cores)))
            targets["workers"] = (server, "foveate")
        for name, start in RIVALS.items():
            if (python := getattr(options, name)) is not None:
                targets[name] = (stack.enter_context(start(python, subject.bundle, cores)), "oip")
        expected = own_best_classes(ours.address, subject)
        for name in targets.keys() - {"foveate"}:
            address = targets[name][0].address
            if name in RIVALS:
                found = asyncio.run(best_classes(address, subject))
            else:
                found = own_best_classes(address, subject)
            agreement = np.mean(np.equal(found, expected))
            assert agreement >= AGREEMENT, f"{name} agrees with Foveate on {agreement:.1%}"
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
        for number in track(range(options.rounds + 1), subject.about, console=Console(stderr=True)):
            for name, (server, protocol) in targets.items():
                figures = load(server, protocol, subject, options)
                if number > 0:  # the first round warms up
                    rounds[name].append(figures)
    columns = {
        name: {key: [x[key] for x in found] for key in KEYS} for name, found in rounds.items()
    }
    return {
        "about": subject.about,
        "model": subject.model,
        "pictures": len(subject.pictures),
        "servers": {
            name: {key: summary(values) for key, values in column.items()}
            for name, column in columns.items()
        },
        "ratios": {
            f"{own} / {other}": {key: ratio(columns[own][key], columns[other][key]) for key in KEYS}
            for own in columns
            if own in OURS
            for other in columns
            if other not in OURS
        },
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result: medians, and the range of the rounds."""
    about = (
        f"{result['concurrency']} requests at once over {result['connections']} connections, "
        f"{result['rounds']} rounds, on "
        f"{result['machine']['cores']} cores of an {result['machine']['processor']}; the load "
        f"average before was {result['load_average_before']:.1f}, where 0 is a machine that does "
        "nothing else. Medians, and the range of the rounds; ratios are taken round by round."
    )
    parts = [textwrap.fill(about, 100)]
    for subject in result["subjects"]:
        decimals = 1 if subject["about"] == "photographs" else 2
        rows = [
            [
                NAMES[name],
                pages.middle(row["requests_per_second"], 1),
                pages.middle(row["cpu_ms_per_request"], decimals),
                pages.middle(row["p99_ms"], 0),
            ]
            for name, row in subject["servers"].items()
        ]
        rows += [
            [
                " / ".join(NAMES[side] for side in name.split(" / ")),
                *(pages.middle(row[key], 2) for key in KEYS),
            ]
            for name, row in subject["ratios"].items()
        ]
        parts.append(f"`{subject['model']}`, {subject['pictures']} {subject['about']} in turn:")
        parts.append(pages.table(["", "requests a second", "CPU-ms a request", "p99, ms"], rows))
    return "\n\n".join(parts)


def main() -> None:
    """Parse the command line, measure, and write the results."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    script.finish(measure(options), page_part, options)


if __name__ == "__main__":
    main()
