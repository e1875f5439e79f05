"""What a picture costs when it comes by HTTP, and when it comes by gRPC.

    python -m benchmarks.http_cost --images DIR

First the processor time of one server that is asked by both in turn, one request after
another; then the requests a second of callers who wait for their answers, of a server on cores
of its own.
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    closing,
)
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import grpc.aio

from benchmarks import pages, rounds, script
from benchmarks.digits import write_digits
from benchmarks.overload import serving_apart
from benchmarks.request_cost import ratio, read_pictures, summary
from benchmarks.server import serving
from foveate.inference.open_inference_pb2 import ServerLiveRequest
from foveate.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from foveate.v1.classifier_service_pb2 import ClassifyRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub

RESULTS = Path(__file__).parent / "results" / "http_cost.json"
PAGE = pages.DOCS / "performance.md"
MODEL = "efficientnet_lite0"
DIGITS = "mnist"
WAYS = ("gRPC", "HTTP")
CALLERS = 16
ROUNDS_OF_RATES = 7
SECONDS = 2.0
"""Of each way in a round of rates."""

Ask = Callable[[], None]


class Asking:
    """Asks one request after another, with connections of its own."""

    def __init__(self, grpc_address: str, http_address: str) -> None:
        self._channel = grpc.insecure_channel(grpc_address)
        self._connection = HTTPConnection(http_address)

    def close(self) -> None:
        """Close the connections."""
        self._channel.close()
        self._connection.close()

    def live(self) -> dict[str, Ask]:
        """Return what asks by each protocol whether the server lives."""
        live = GRPCInferenceServiceStub(self._channel).ServerLive

        def by_grpc() -> None:
            assert live(ServerLiveRequest()).live

        def by_http() -> None:
            self._send("GET", "/v2/health/live")

        return dict(zip(WAYS, (by_grpc, by_http), strict=True))

    def classify(self, model: str, picture: bytes) -> dict[str, Ask]:
        """Return what has a picture classified by each protocol, and compares the class."""
        classify = ClassifierServiceStub(self._channel).Classify
        message = ClassifyRequest(model=model, encoded=picture)
        right = classify(message).predictions[0].class_id

        def by_grpc() -> None:
            assert classify(message).predictions[0].class_id == right

        def by_http() -> None:
            found = json.loads(self._send("POST", f"/v1/models/{model}:classify", picture))
            assert found["predictions"][0]["class_id"] == right

        return dict(zip(WAYS, (by_grpc, by_http), strict=True))

    def _send(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self._connection.request(method, path, body=body)
        with self._connection.getresponse() as answer:
            assert answer.status == 200
            return answer.read()


def free_address() -> str:
    """Return an address of this machine at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def send_all(count: int, ask: Ask) -> None:
    """Send requests one after another."""
    for _ in range(count):
        ask()


def measure_costs(repository: Path, photograph: bytes) -> dict[str, Any]:
    """Ask one server by both protocols in turn; return what each request has cost."""
    http = free_address()
    with ExitStack() as stack:
        server = stack.enter_context(serving(repository, "--http-address", http))
        asking = stack.enter_context(closing(Asking(server.address, http)))
        requests = {
            "a call that does nothing": (320, asking.live()),
            "a photograph": (32, asking.classify(MODEL, photograph)),
        }
        kinds = {
            name: (
                count,
                {way: (server, partial(send_all, count, ask)) for way, ask in asks.items()},
            )
            for name, (count, asks) in requests.items()
        }
        return rounds.measure("http_cost", kinds, ("HTTP", "gRPC"))


Asked = Callable[[], Awaitable[None]]


@asynccontextmanager
async def grpc_caller(address: str, model: str, picture: bytes) -> AsyncIterator[Asked]:
    """Yield what has a picture classified by gRPC, on a connection of its own."""
    # Channels with the same options share a connection.
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, own) as channel:
        classify = ClassifierServiceStub(channel).Classify
        message = ClassifyRequest(model=model, encoded=picture)

        async def ask() -> None:
            assert (await classify(message)).predictions

        yield ask


@asynccontextmanager
async def http_caller(address: str, model: str, picture: bytes) -> AsyncIterator[Asked]:
    """Yield what has a picture classified by HTTP, on a connection of its own."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /v1/models/{model}:classify HTTP/1.1\r\nHost: {address}\r\n"
        f"Content-Length: {len(picture)}\r\n\r\n"
    )

    async def ask() -> None:
        writer.write(head.encode() + picture)
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        assert b" 200 " in status
        (length,) = (field for field in fields if field.startswith(b"content-length:"))
        answer = await reader.readexactly(int(length.partition(b":")[2]))
        assert json.loads(answer)["predictions"]

    try:
        yield ask
    finally:
        writer.close()


async def rate(callers: Sequence[AbstractAsyncContextManager[Asked]]) -> float:
    """Have callers ask again and again; return the requests a second."""
    count = 0
    async with AsyncExitStack() as stack:
        asks = [await stack.enter_async_context(caller) for caller in callers]
        start = time.perf_counter()

        async def again(ask: Asked) -> None:
            nonlocal count
            while time.perf_counter() - start < SECONDS:
                await ask()
                count += 1

        async with asyncio.TaskGroup() as group:
            for ask in asks:
                group.create_task(again(ask))
        return count / (time.perf_counter() - start)


def measure_rates(repository: Path, pictures: Mapping[str, tuple[str, bytes]]) -> dict[str, Any]:
    """Return the rates of each picture, by name a model and what it is asked, and the ratios."""
    http = free_address()
    rates: dict[str, dict[str, list[float]]] = {
        name: {way: [] for way in WAYS} for name in pictures
    }
    with serving_apart(repository, "--http-address", http) as server:
        ways = {"gRPC": partial(grpc_caller, server.address), "HTTP": partial(http_caller, http)}
        for number in range(ROUNDS_OF_RATES + 1):
            for name, asked in pictures.items():
                for way in WAYS if number % 2 else reversed(WAYS):
                    found = asyncio.run(rate([ways[way](*asked) for _ in range(CALLERS)]))
                    if number > 0:  # the first round warms up
                        rates[name][way].append(found)
    return {
        "rates": {
            name: {way: summary(values) for way, values in by.items()} for name, by in rates.items()
        },
        "rate_ratio": {name: ratio(by["HTTP"], by["gRPC"]) for name, by in rates.items()},
        "rounds_of_rates": ROUNDS_OF_RATES,
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return both tables for the page."""
    rows = [
        [
            name,
            *(pages.middle(by[way], 1) for way in WAYS),
            pages.middle(result["rate_ratio"][name], 2),
        ]
        for name, by in result["rates"].items()
    ]
    head = [f"requests a second of {CALLERS} callers", *WAYS, "ratio"]
    return (
        f"{rounds.page_part(result, WAYS)}\n\n"
        f"Of a server on a half of the cores, {result['rounds_of_rates']} rounds:\n\n"
        f"{pages.table(head, rows)}"
    )


def main() -> None:
    """Measure and write the result."""
    options = script.parse(script.Photographs, __doc__, out=RESULTS, page=PAGE)
    photograph = read_pictures(options.images)[0]
    with TemporaryDirectory() as folder:
        (digit,) = write_digits(Path(folder), 1)
    result = measure_costs(options.repository, photograph)
    result |= measure_rates(
        options.repository,
        {"a digit": (DIGITS, digit), "a photograph": (MODEL, photograph)},
    )
    script.finish(result, page_part, options)


if __name__ == "__main__":
    main()
