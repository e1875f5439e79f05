"""A server whose service time is known, in the test's own event loop."""

# ruff: noqa: N802 - the protocol names the methods

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest

from foveate.v1 import classifier_service_pb2 as service
from foveate.v1 import model_pb2 as models
from foveate.v1.classifier_service_pb2_grpc import (
    ClassifierServiceServicer,
    add_ClassifierServiceServicer_to_server,
)
from foveate_client import Credentials
from foveate_client._transports.channel import PLAINTEXT
from foveate_client.load.driver import Driver, connect
from foveate_client.load.workload import Mix, foveate_workload

from ...ports import listen
from ...waiting import LIMIT_SECONDS

ANSWER = service.ClassifyResponse(
    model="pets", version="1", predictions=[service.Prediction(class_id=1, score=1)]
)


class Delayed(ClassifierServiceServicer):
    """Answers each picture after `seconds`, but none while a stall lasts."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.code: grpc.StatusCode | None = None
        self.asked: list[service.ClassifyRequest] = []
        self.peers: set[str] = set()
        self.tokens: set[str | None] = set()
        self._stalled_until = 0.0

    def stall(self, seconds: float) -> None:
        self._stalled_until = time.perf_counter() + seconds

    async def Classify(self, request, context):
        self.asked.append(request)
        self.peers.add(context.peer())
        self.tokens.add(dict(context.invocation_metadata()).get("authorization"))
        await asyncio.sleep(max(self.seconds, self._stalled_until - time.perf_counter()))
        if self.code is not None:
            await context.abort(self.code, "as the test wants")
        return ANSWER

    async def GetModel(self, request, context):
        layers = [
            models.Layer(name=name, channels=2, height=1, width=1) for name in ("first", "last")
        ]
        return service.GetModelResponse(
            model=models.Model(name=request.name or "pets", version="1", layers=layers)
        )


class Served:
    """The running server: how it answers, and how to drive it."""

    def __init__(self, service: Delayed, address: str, pictures: list[bytes]) -> None:
        self.service = service
        self.address = address
        self._pictures = pictures

    @asynccontextmanager
    async def driver(
        self,
        *,
        connections: int = 1,
        timeout: float = 60.0,  # noqa: ASYNC109 - a gRPC deadline
        mix: Mix | None = None,
        seed: int = 0,
        credentials: Credentials = PLAINTEXT,
    ) -> AsyncIterator[Driver]:
        async with connect(self.address, connections, credentials) as channels:
            workload = await foveate_workload(
                channels[0], self._pictures, mix or Mix(), model="", timeout=LIMIT_SECONDS
            )
            self.service.asked.clear()
            self.service.peers.clear()
            yield Driver(channels, workload, timeout=timeout, seed=seed)


@pytest.fixture
def pictures(coffee: Path, chelsea: Path) -> list[bytes]:
    return [coffee.read_bytes(), chelsea.read_bytes()]


@pytest.fixture
async def served(pictures: list[bytes]) -> AsyncIterator[Served]:
    server = grpc.aio.server()
    delayed = Delayed()
    add_ClassifierServiceServicer_to_server(delayed, server)
    port = listen(server)
    await server.start()
    yield Served(delayed, f"127.0.0.1:{port}", pictures)
    await server.stop(grace=None)
