"""A transport of either kind, with a handler of every kind, and the real client."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest

from foveate_serve.settings import TransportSettings
from foveate_serve.transports.base import Transport
from foveate_serve.transports.make import make_transport

from .http2.conftest import RawClient
from .service import Service


@dataclass
class Served:
    """A transport that listens, with a handler of every kind."""

    transport: Transport
    service: Service
    port: int

    def channel(self, *options: tuple[str, Any]) -> grpc.aio.Channel:
        """A channel with a connection of its own, which tries no call twice."""
        own = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=[*own, *options])

    async def open(self) -> RawClient:
        """A client that reads frames, and has exchanged settings with the server."""
        client = await RawClient.open(self.port, {})
        client.answers_pings = True
        await client.settle()
        return client


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture(params=["grpcio", "http2"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(name: str) -> Callable[..., Transport]:
    """Return a function that makes a transport of either kind."""

    def make(
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (), **limits: object
    ) -> Transport:
        settings = TransportSettings.model_validate({"transport": name, **limits})
        return make_transport(settings, interceptors)

    return make


@pytest.fixture
def serve(make: Callable[..., Transport]) -> Serve:
    """Return a function that serves on a free port."""

    @asynccontextmanager
    async def serve(service: Service | None = None, **options: Any) -> AsyncIterator[Served]:
        transport, service = make(**options), service or Service()
        transport.add_generic_rpc_handlers([service.handlers()])
        if options.get("channelz"):
            transport.add_channelz()
        served = Served(transport, service, await transport.listen("127.0.0.1:0"))
        try:
            yield served
        finally:
            service.gate.set()
            await transport.stop()

    return serve
