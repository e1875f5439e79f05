"""What a request costs a server with each transport.

Both servers run at one time, and are asked in turn: a machine whose speed varies
is as quick for the one as for the other.

    python -m benchmarks.transports --images DIR
"""

import random
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from benchmarks import machine, pages, script
from benchmarks.request_cost import read_pictures
from benchmarks.server import Server, serving
from foveate.v1.classifier_service_pb2 import ClassifyRequest, RawImage
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub

RESULTS = Path(__file__).parent / "results" / "transports.json"
PAGE = pages.DOCS / "serving" / "transport.md"
TRANSPORTS = ("grpcio", "http2")
ROUNDS = 15
AT_ONCE = 32

Call = Callable[[grpc.Channel], Any]
"""Begins a request, and returns its future."""


def requests(photograph: bytes) -> dict[str, tuple[int, Call]]:
    """Return how many requests of each kind a round has, and what begins one."""
    raw = RawImage(height=28, width=28, channels=1, data=bytes(784))
    digit = ClassifyRequest(model="mnist", raw=raw)
    picture = ClassifyRequest(model="efficientnet_lite0", encoded=photograph)

    def classify(request: ClassifyRequest) -> Call:
        return lambda channel: ClassifierServiceStub(channel).Classify.future(request)

    check = HealthCheckRequest()
    return {
        "a call that does nothing": (320, lambda channel: HealthStub(channel).Check.future(check)),
        "a digit": (320, classify(digit)),
        "a photograph": (32, classify(picture)),
    }


def cpu_ms(server: Server, channel: grpc.Channel, count: int, call: Call, at_once: int) -> float:
    """Send requests, so many at one time; return the server's CPU-ms for each."""
    start = server.cpu_seconds()
    pending: deque[Any] = deque()
    for _ in range(count):
        if len(pending) == at_once:
            pending.popleft().result()
        pending.append(call(channel))
    for future in pending:
        future.result()
    return 1e3 * (server.cpu_seconds() - start) / count


def measure(repository: Path, images: Path) -> dict[str, Any]:
    """Ask both servers in turn; return what each request has cost."""
    kinds = [
        (f"{name}, {at_once} at once" if at_once > 1 else f"{name}, alone", count, call, at_once)
        for name, (count, call) in requests(read_pictures(images)[0]).items()
        for at_once in (1, AT_ONCE)
    ]
    samples = {name: {transport: [] for transport in TRANSPORTS} for name, *_ in kinds}
    chance = random.Random(0)  # noqa: S311 - an order, not a secret
    with ExitStack() as stack:
        asked = {}
        for transport in TRANSPORTS:
            server = stack.enter_context(serving(repository, "--transport", transport))
            channel = stack.enter_context(grpc.insecure_channel(server.address))
            asked[transport] = server, channel
        for number in range(ROUNDS + 1):
            for name, *kind in kinds:
                for transport in chance.sample(TRANSPORTS, len(TRANSPORTS)):
                    taken = cpu_ms(*asked[transport], *kind)
                    if number > 0:  # the first round warms up
                        samples[name][transport].append(taken)
    return {
        "benchmark": "transports",
        "rounds": ROUNDS,
        "cpu_ms": {
            name: {transport: summary(values) for transport, values in by.items()}
            for name, by in samples.items()
        },
        "ratio": {
            name: summary([a / b for a, b in zip(by["grpcio"], by["http2"], strict=True)])
            for name, by in samples.items()
        },
        "machine": machine.describe(),
    }


def summary(values: list[float]) -> dict[str, float]:
    """Return the least, the middle and the largest value."""
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return the table for the page."""
    rows = [
        [
            name,
            *(pages.middle(costs[transport], 2) for transport in TRANSPORTS),
            pages.middle(result["ratio"][name], 2),
        ]
        for name, costs in result["cpu_ms"].items()
    ]
    head = ["CPU-ms of the server", *TRANSPORTS, "ratio"]
    return (
        f"Medians of {result['rounds']} rounds, with the least and the largest:\n\n"
        f"{pages.table(head, rows)}"
    )


def main() -> None:
    """Measure and write the result."""
    options = script.parse(script.parser(__doc__ or "", out=RESULTS, page=PAGE))
    script.finish(measure(options.repository, options.images), page_part, options)


if __name__ == "__main__":
    main()
