"""What a photograph costs a server when it comes by HTTP, and when it comes by gRPC.

One server is asked by both in turn, one request after another.

    python -m benchmarks.http_cost --images DIR
"""

import json
import re
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from benchmarks import pages, rounds, script
from benchmarks.request_cost import read_pictures
from benchmarks.server import serving
from foveate.inference.open_inference_pb2 import ServerLiveRequest
from foveate.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from foveate.v1.classifier_service_pb2 import ClassifyRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub

RESULTS = Path(__file__).parent / "results" / "http_cost.json"
PAGE = pages.DOCS / "serving" / "http.md"
MODEL = "efficientnet_lite0"
WAYS = ("gRPC", "HTTP")

page_part = partial(rounds.page_part, ways=WAYS)

Ask = Callable[[], None]


def requests(
    channel: grpc.Channel, connection: HTTPConnection, photograph: bytes
) -> dict[str, tuple[int, dict[str, Ask]]]:
    """Return how many requests of each kind a round has, and what sends one by each protocol."""
    classify = ClassifierServiceStub(channel).Classify
    live = GRPCInferenceServiceStub(channel).ServerLive
    message = ClassifyRequest(model=MODEL, encoded=photograph)
    right = classify(message).predictions[0].class_id

    def by_http(method: str, path: str, body: bytes | None = None) -> bytes:
        connection.request(method, path, body=body)
        with connection.getresponse() as answer:
            assert answer.status == 200
            return answer.read()

    def live_by_grpc() -> None:
        assert live(ServerLiveRequest()).live

    def live_by_http() -> None:
        by_http("GET", "/v2/health/live")

    def classify_by_grpc() -> None:
        assert classify(message).predictions[0].class_id == right

    def classify_by_http() -> None:
        found = json.loads(by_http("POST", f"/v1/models/{MODEL}:classify", photograph))
        assert found["predictions"][0]["class_id"] == right

    return {
        "a call that does nothing": (320, {"gRPC": live_by_grpc, "HTTP": live_by_http}),
        "a photograph": (32, {"gRPC": classify_by_grpc, "HTTP": classify_by_http}),
    }


def send_all(count: int, ask: Ask) -> None:
    """Send requests one after another."""
    for _ in range(count):
        ask()


def measure(repository: Path, images: Path) -> dict[str, Any]:
    """Ask by both protocols in turn; return what each request has cost."""
    with ExitStack() as stack:
        log = Path(stack.enter_context(TemporaryDirectory())) / "log"
        server = stack.enter_context(serving(repository, "--http-address", "127.0.0.1:0", log=log))
        found = re.search(r"HTTP on http://([0-9.:]+)", log.read_text(encoding="utf-8"))
        assert found
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        connection = stack.enter_context(closing(HTTPConnection(found[1])))
        photograph = read_pictures(images)[0]
        kinds = {
            name: (
                count,
                {way: (server, partial(send_all, count, ask)) for way, ask in asks.items()},
            )
            for name, (count, asks) in requests(channel, connection, photograph).items()
        }
        return rounds.measure("http_cost", kinds, ("HTTP", "gRPC"))


page_part = partial(rounds.page_part, ways=("gRPC", "HTTP"))
"""Returns the table for the page."""


def main() -> None:
    """Measure and write the result."""
    options = script.parse(script.Photographs, __doc__, out=RESULTS, page=PAGE)
    result = measure(options.repository, options.images)
    script.finish(result, page_part, options)


if __name__ == "__main__":
    main()
