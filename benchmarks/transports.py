"""What a request costs a server with each transport.

Both servers run at one time, and are asked in turn: a machine whose speed varies
is as quick for the one as for the other.

    python -m benchmarks.transports --images DIR
"""

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from benchmarks import pages, rounds, script
from benchmarks.request_cost import read_pictures
from benchmarks.server import serving
from foveate.v1.classifier_service_pb2 import ClassifyRequest, RawImage
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub

RESULTS = Path(__file__).parent / "results" / "transports.json"
PAGE = pages.DOCS / "serving" / "transport.md"
TRANSPORTS = ("grpcio", "http2")
AT_ONCE = 32

page_part = partial(rounds.page_part, ways=TRANSPORTS)

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


def send_all(channel: grpc.Channel, count: int, call: Call, at_once: int) -> None:
    """Send requests, so many at one time, and wait for all answers."""
    pending: deque[Any] = deque()
    for _ in range(count):
        if len(pending) == at_once:
            pending.popleft().result()
        pending.append(call(channel))
    for future in pending:
        future.result()


def measure(repository: Path, images: Path) -> dict[str, Any]:
    """Ask both servers in turn; return what each request has cost."""
    with ExitStack() as stack:
        asked = {}
        for transport in TRANSPORTS:
            server = stack.enter_context(serving(repository, "--transport", transport))
            channel = stack.enter_context(grpc.insecure_channel(server.address))
            asked[transport] = server, channel
        kinds = {
            f"{name}, {at_once} at once" if at_once > 1 else f"{name}, alone": (
                count,
                {
                    transport: (server, partial(send_all, channel, count, call, at_once))
                    for transport, (server, channel) in asked.items()
                },
            )
            for name, (count, call) in requests(read_pictures(images)[0]).items()
            for at_once in (1, AT_ONCE)
        }
        return rounds.measure("transports", kinds, TRANSPORTS)


page_part = partial(rounds.page_part, ways=TRANSPORTS)
"""Returns the table for the page."""


def main() -> None:
    """Measure and write the result."""
    options = script.parse(script.Photographs, __doc__, out=RESULTS, page=PAGE)
    result = measure(options.repository, options.images)
    script.finish(result, page_part, options)


if __name__ == "__main__":
    main()
