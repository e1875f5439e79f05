"""The same classifier behind Foveate and behind other servers, driven by `foveate load`.

    python -m benchmarks.comparison [--triton PYTHON] [--mlserver PYTHON] [--concurrency N]

Each PYTHON is an interpreter of an environment with that server (nvidia-pytriton,
which holds Triton's program, or mlserver with uvloop below 0.22, without which its
workers do not start), onnxruntime and Pillow. The others run
`benchmarks.rivals.classifier`, one worker a core, on the same ONNX file: they are
asked for the logits of JPEG files over the Open Inference Protocol, and Foveate for
the five best classes over its own. Their rounds alternate. Compared are requests a
second and the CPU-seconds of each server's whole process tree; the load comes from
this machine too. Before the clock starts, every server must agree with Foveate on
the best class of the photographs. The table goes into docs/client/load.md as well.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine, pages
from benchmarks.request_cost import MODEL, ratio, read_pictures, summary
from benchmarks.rivals.servers import mlserver, triton
from benchmarks.server import Server, serving
from foveate.inference.open_inference_pb2 import ModelInferResponse
from foveate_client import Client
from foveate_client.load.driver import connect
from foveate_client.load.workload import oip_workload

RESULTS = Path(__file__).parent / "results" / "comparison.json"
PAGE = pages.DOCS / "client" / "load.md"
RIVALS = {"triton": triton, "mlserver": mlserver}
NAMES = {"foveate": "Foveate", "triton": "Triton's core", "mlserver": "MLServer"}
AGREEMENT = 0.97
"""At least, of the best classes with Foveate's: pixels may differ in the last digit."""


async def best_classes(address: str, pictures: list[bytes]) -> list[int]:
    """Return the class of the largest logit of each picture, over the Open Inference Protocol."""
    async with connect(address, 1) as (channel,):
        workload = await oip_workload(channel, pictures, model=MODEL, output="logits", timeout=60)
        call = channel.unary_unary(
            workload.method, response_deserializer=ModelInferResponse.FromString
        )
        best = []
        for request in workload.requests["plain"]:
            answer = await call(request, timeout=60)
            best.append(int(_logits(answer).argmax()))
    return best


def _logits(answer: ModelInferResponse) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    if answer.raw_output_contents:
        return np.frombuffer(answer.raw_output_contents[0], dtype=np.float32)
    return np.array(answer.outputs[0].contents.fp32_contents, dtype=np.float32)


def load(
    server: Server, protocol: str, images: Path, options: argparse.Namespace
) -> dict[str, float]:
    """Run `foveate load` once; return requests a second, CPU-ms a request and the p99 in ms."""
    foveate = Path(sys.executable).with_name("foveate")
    command = [
        *(foveate, "load", images, "--address", server.address, "--protocol", protocol),
        *("--model", MODEL, "--concurrency", str(options.concurrency), "--json"),
        *("--duration", str(options.duration), "--warmup", "0"),
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


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Alternate the servers; return their figures and how they compare with Foveate."""
    load_average = os.getloadavg()[0]
    bundle = next(iter(sorted((options.repository / MODEL).glob("[0-9]*"))))
    cores = len(os.sched_getaffinity(0))
    pictures = read_pictures(options.images)
    with ExitStack() as stack:
        ours = stack.enter_context(serving(options.repository, *options.serve))
        targets = {"foveate": (ours, "foveate")}
        for name, start in RIVALS.items():
            if (python := getattr(options, name)) is not None:
                targets[name] = (stack.enter_context(start(python, bundle, cores)), "oip")
        with Client(ours.address) as client:
            answers = [client.classify(picture, model=MODEL) for picture in pictures]
        expected = [answer.predictions[0].class_id for answer in answers]
        for name in targets.keys() & RIVALS.keys():
            found = asyncio.run(best_classes(targets[name][0].address, pictures))
            agreement = np.mean(np.equal(found, expected))
            assert agreement >= AGREEMENT, f"{name} agrees with Foveate on {agreement:.1%}"
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
        for number in track(range(options.rounds + 1), "rounds", console=Console(stderr=True)):
            for name, (server, protocol) in targets.items():
                figures = load(server, protocol, options.images, options)
                if number > 0:  # the first round warms up
                    rounds[name].append(figures)
    keys = ("requests_per_second", "cpu_ms_per_request", "p99_ms")
    columns = {
        name: {key: [x[key] for x in found] for key in keys} for name, found in rounds.items()
    }
    return {
        "benchmark": "comparison",
        "model": MODEL,
        "photographs": len(pictures),
        "concurrency": options.concurrency,
        "serve": options.serve,
        "rounds": options.rounds,
        "servers": {
            name: {key: summary(values) for key, values in column.items()}
            for name, column in columns.items()
        },
        "foveate / other": {
            name: {key: ratio(columns["foveate"][key], column[key]) for key in keys}
            for name, column in columns.items()
            if name != "foveate"
        },
        # Above nothing, others were at work on the machine, and the rates are theirs as well.
        "load_average_before": round(load_average, 2),
        "machine": machine.describe(),
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result: medians, and the range of the rounds."""
    rows = [
        [
            NAMES[name],
            pages.middle(row["requests_per_second"], 1),
            pages.middle(row["cpu_ms_per_request"], 1),
            pages.middle(row["p99_ms"], 0),
        ]
        for name, row in result["servers"].items()
    ]
    about = (
        f"{result['concurrency']} requests at once, {result['photographs']} photographs in turn, "
        f"{result['rounds']} rounds, on {result['machine']['cores']} cores of an "
        f"{result['machine']['processor']}; the load average before was "
        f"{result['load_average_before']:.1f}, where 0 is a machine that does nothing else. "
        "Medians, and the range of the rounds:"
    )
    head = ["", "requests a second", "CPU-ms a request", "p99, ms"]
    return f"{textwrap.fill(about, 100)}\n\n{pages.table(head, rows)}"


def report(result: dict[str, object]) -> None:
    """Print the medians as a table."""
    table = Table("", "requests/s", "CPU-ms a request", "p99, ms", title="medians")
    servers = result["servers"]
    assert isinstance(servers, dict)
    for name, row in servers.items():
        table.add_row(name, *(str(cell["median"]) for cell in row.values()))
    Console().print(table)


def main() -> None:
    """Parse the command line, measure, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path("demo-output/repository"))
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    for name in RIVALS:
        parser.add_argument(f"--{name}", type=Path, metavar="PYTHON")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--duration", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("serve", nargs="*", metavar="-- OPTION", help="options of foveate serve")
    options = parser.parse_args()
    if options.images is None:
        parser.error("--images is needed: a folder of JPEG photographs")
    options.images = Path(options.images)
    result = measure(options)
    machine.save(result, options.out)
    pages.write_part(options.page, "comparison", page_part(result))
    report(result)
    Console(stderr=True).print(f"written to {options.out} and {options.page}")


if __name__ == "__main__":
    main()
