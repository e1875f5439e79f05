"""What the features of operations cost a plain request, unused and used.

python -m benchmarks.feature_cost [--repository DIR] [--images DIR] [--rounds N]
                                  [--page FILE]

Servers with the same models stand beside each other, one for each feature:
`bare` has the same engine, service and transport, and nothing around them; `off` is
`foveate serve` with every feature off; the others have one feature on. Each
round sends the same small pictures (28 x 28 bytes, where the work around the
engine is most of the work) to each server, one after another, and takes the
CPU time of its process tree, in an order that changes from round to round. A
round lasts about a second, so that what else the machine does falls on all of
them alike. The cost of a feature is the difference to `bare` within a round:
the median of the rounds, with its confidence interval. As a share it is set
against one photograph classified by the ImageNet model, which `bare` is sent as
well, and against the small picture itself.
"""

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import trustme
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, script
from benchmarks.request_cost import MODEL as PHOTOGRAPHS
from benchmarks.request_cost import read_pictures, summary
from benchmarks.server import Server, serving
from foveate.v1.classifier_service_pb2 import ClassifyRequest, RawImage
from foveate.v1.classifier_service_pb2_grpc import (
    ClassifierServiceStub,
)
from foveate_runtime.options import option
from foveate_serve.assembly import make_engine
from foveate_serve.rpc.handlers import ClassifierHandler
from foveate_serve.rpc.interceptor import CallInterceptor
from foveate_serve.rpc.methods import method_handlers
from foveate_serve.rpc.server import CLASSIFIER
from foveate_serve.settings import Settings
from foveate_serve.transports.make import make_transport

RESULTS = Path(__file__).parent / "results" / "feature_cost.json"
PAGE = pages.DOCS / "serving" / "operations.md"
SMALL = "mnist"
REQUESTS = 80
PHOTOGRAPHS_A_ROUND = 5
CONFIDENCE = 0.95
RESAMPLES = 10_000
TOKEN = "benchmark-of-the-token"  # noqa: S105 - of no other use

FEATURES = {
    "off": (),
    "metrics": ("--metrics-address", "127.0.0.1:0"),
    "log of requests": ("--log-requests", "--log-format", "json"),
    "traces, not sampled": ("--tracing",),
    "token": (),
    "TLS": (),
    # No answer fits into one byte, so that every request pays for a look and finds nothing.
    "cache, only misses": ("--cache-bytes", "1"),
    "deduplicate": ("--deduplicate",),
}
"""The flags of `foveate serve` by feature; tokens and TLS have theirs in the environment."""


async def serve_bare(repository: Path) -> None:
    """Serve the classifier alone until stdin ends; print the address as `foveate serve` does."""
    settings = Settings(repository=repository)
    engine = make_engine(settings)
    await engine.repository.open()
    server = make_transport(settings, (CallInterceptor(),))
    handler = ClassifierHandler(engine, stream_window=settings.stream_window)
    server.add_generic_rpc_handlers([method_handlers(CLASSIFIER, handler)])
    port = await server.listen("127.0.0.1:0")
    print(f"bare on 127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()
    await engine.close()


@contextmanager
def serving_bare(repository: Path) -> Iterator[Server]:
    """Start `serve_bare` in a process of its own, and stop it afterwards."""
    command = [sys.executable, "-m", "benchmarks.feature_cost", "--bare", repository]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Server(process.stdout.readline().split()[-1], psutil.Process(process.pid))
        process.stdin.close()


@contextmanager
def connected(name: str, repository: Path) -> Iterator[tuple[Server, grpc.Channel]]:
    """Start the server with a feature, and connect to it as the feature asks."""
    with ExitStack() as stack:
        if name == "bare":
            server = stack.enter_context(serving_bare(repository))
            yield server, stack.enter_context(grpc.insecure_channel(server.address))
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = {"OTEL_TRACES_SAMPLER": "always_off"}
        authority = trustme.CA()
        if name == "TLS":
            issued = authority.issue_cert("127.0.0.1")
            (folder / "cert.pem").write_bytes(issued.cert_chain_pems[0].bytes())
            (folder / "key.pem").write_bytes(issued.private_key_pem.bytes())
            environment["FOVEATE_SERVE_TLS_CERTIFICATE"] = str(folder / "cert.pem")
            environment["FOVEATE_SERVE_TLS_KEY"] = str(folder / "key.pem")
        if name == "token":
            environment["FOVEATE_SERVE_TOKEN"] = TOKEN
        server = stack.enter_context(
            serving(repository, *FEATURES[name], environment=environment, log=folder / "log")
        )
        if name == "TLS":
            credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
            channel = grpc.secure_channel(server.address, credentials)
        else:
            channel = grpc.insecure_channel(server.address)
        yield server, stack.enter_context(channel)


def cpu_microseconds(
    server: Server, channel: grpc.Channel, requests: Sequence[ClassifyRequest], token: bool
) -> float:
    """Send `requests` one after another; return the server's CPU-microseconds for each."""
    stub = ClassifierServiceStub(channel)
    metadata = (("authorization", f"Bearer {TOKEN}"),) if token else ()
    start = server.cpu_seconds()
    for request in requests:
        assert stub.Classify(request, timeout=30, metadata=metadata).predictions
    return 1e6 * (server.cpu_seconds() - start) / len(requests)


def measure(repository: Path, images: Path, rounds: int) -> dict[str, object]:
    """Alternate the servers; return the cost of each feature."""
    pictures = read_pictures(images)
    photographs = [ClassifyRequest(model=PHOTOGRAPHS, encoded=picture) for picture in pictures]
    with Image.open(BytesIO(pictures[0])) as first:
        pixels = first.convert("L").resize((28, 28)).tobytes()
    raw = RawImage(height=28, width=28, channels=1, data=pixels)
    small = [ClassifyRequest(model=SMALL, raw=raw)] * REQUESTS
    names = ("bare", *FEATURES)
    samples: dict[str, list[float]] = {name: [] for name in names}
    photograph: list[float] = []
    chance = random.Random(0)  # noqa: S311 - an order, not a secret
    with ExitStack() as stack:
        servers = {name: stack.enter_context(connected(name, repository)) for name in names}
        for number in track(range(rounds + 1), "rounds", console=Console(stderr=True)):
            for name in chance.sample(names, len(names)):
                taken = cpu_microseconds(*servers[name], small, token=name == "token")
                if number > 0:  # the first round warms up
                    samples[name].append(taken)
            some = chance.sample(photographs, PHOTOGRAPHS_A_ROUND)
            taken = cpu_microseconds(*servers["bare"], some, token=False)
            if number > 0:
                photograph.append(taken)
    costs = {name: np.subtract(samples[name], samples["bare"]) for name in FEATURES}
    return {
        "benchmark": "feature_cost",
        "requests": REQUESTS,
        "rounds": rounds,
        "confidence": CONFIDENCE,
        "cpu_us_per_small_picture": {name: summary(values) for name, values in samples.items()},
        "cpu_us_per_photograph": summary(photograph),
        "cost_us": {name: interval(cost) for name, cost in costs.items()},
        "percent_of_a_photograph": {
            name: interval(100 * cost / statistics.median(photograph))
            for name, cost in costs.items()
        },
        "percent_of_a_small_picture": {
            name: interval(100 * cost / statistics.median(samples["bare"]))
            for name, cost in costs.items()
        },
        "machine": machine.describe(),
    }


def interval(differences: NDArray[np.float64]) -> dict[str, float]:
    """Return the median and its confidence interval, by a bootstrap of the rounds."""
    drawn = np.random.default_rng(0).choice(differences, (RESAMPLES, len(differences)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.median(drawn, axis=1), (tail, 100 - tail))
    return {
        "median": round(float(np.median(differences)), 2),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result."""
    unused = result["percent_of_a_photograph"]["off"]
    photograph = result["cpu_us_per_photograph"]["median"] / 1000
    about = (
        f"All of them together, unused, cost a photograph ({photograph:.1f} ms of processor time) "
        f"{unused['median']:.2f} % (with {result['confidence']:.0%} confidence {unused['low']:.2f} "
        f"to {unused['high']:.2f} %): the row `off`. The others are servers with one feature in "
        f"use. Medians of {result['rounds']} rounds of {result['requests']} requests:"
    )
    columns = ("cost_us", "percent_of_a_photograph", "percent_of_a_small_picture")
    rows = [[name, *(_cell(result[column][name]) for column in columns)] for name in FEATURES]
    head = ["", "microseconds a request", "% of a photograph", "% of a digit of 28 x 28"]
    return f"{about}\n\n{pages.table(head, rows)}"


def _cell(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['median']} ({found['low']} to {found['high']})"


@dataclass(frozen=True, kw_only=True)
class Options(script.Photographs):
    """The command line."""

    rounds: int = option("that the medians are of", default=160)


def main() -> None:
    """Measure and write the results; with `--bare REPOSITORY` alone, be the server `bare`."""
    if sys.argv[1:2] == ["--bare"]:
        asyncio.run(serve_bare(Path(sys.argv[2])))
        return
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    result = measure(options.repository, options.images, options.rounds)
    script.finish(result, page_part, options)


if __name__ == "__main__":
    main()
