"""The listening server: slow clients, many connections, and addresses."""

import asyncio

import pytest
from starlette.responses import Response
from starlette.routing import Route

from foveate_runtime.bundle.bundle import Bundle
from foveate_serve.process import Process
from foveate_serve.rest import connection
from foveate_serve.rest.server import RestServer
from foveate_serve.rpc.server import AddressError
from foveate_serve.settings import Settings

LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def server(colours: Bundle) -> RestServer:
    settings = Settings(repository=colours.path.parents[1], http_address="127.0.0.1:0")
    return RestServer(settings, Process(settings)._server.services)


async def connect(server: RestServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*server._server.sockets[0].getsockname()[:2])


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Return what the server sends until it closes the connection."""
    found = b""
    try:
        while data := await reader.read(1000):
            found += data
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /v2",
        LIVE + b"GET /v2",
        # It is refused before its body has come.
        b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nx",
    ],
    ids=["nothing", "half a head", "half the head of the second", "half a body"],
)
async def test_a_slow_client_is_cut_off(
    server: RestServer, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connection, "SLOW_SECONDS", 1.0)
    async with server, asyncio.timeout(30):
        reader, writer = await connect(server)
        writer.write(sent)
        answers = await ended(reader)
        assert answers.count(b"HTTP/1.1 200") == sent.count(LIVE)
        writer.close()


async def test_an_idle_connection_has_the_time_of_the_keep_alive(server: RestServer) -> None:
    async with server, asyncio.timeout(30):
        reader, writer = await connect(server)
        for _ in range(3):
            writer.write(LIVE)
            assert b"200" in await reader.readuntil(b"\r\n\r\n")
            (open_one,) = server._state.connections
            assert open_one._slow is None
        writer.close()


async def test_connections_are_bounded(server: RestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 1)
    async with server, asyncio.timeout(30):
        reader, writer = await connect(server)
        writer.write(LIVE)
        await reader.readuntil(b"\r\n\r\n")
        other, refused = await connect(server)
        assert await ended(other) == b""
        writer.write(LIVE)
        assert b"200" in await reader.readuntil(b"\r\n\r\n")
        refused.close()
        writer.close()


async def test_a_request_does_not_inherit_from_the_one_before_it(server: RestServer) -> None:
    """Both come in one packet, so that the second begins where the first ends."""
    async with server, asyncio.timeout(30):
        reader, writer = await connect(server)
        post = b"POST /v1/models/x:classify HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n"
        writer.write(post + b"x-priority: no\r\n\r\nx" + post + b"connection: close\r\n\r\nx")
        answers = await ended(reader)
        assert answers.count(b"PRIORITY_OUT_OF_RANGE") == 1
        assert answers.count(b"MODELS_UNKNOWN") == 1
        writer.close()


async def test_a_drain_sends_all_of_the_answers(server: RestServer) -> None:
    """The client reads only after the drain has begun, and the answer exceeds every buffer."""
    size = 16 << 20

    async def large(*_: object) -> Response:
        return Response(bytes(size))

    for route in server._config.app.routes:
        if route.path == "/v2/health/live":
            route.app = Route("/", large).app
    async with server, asyncio.timeout(60):
        reader, writer = await connect(server)
        writer.write(LIVE)
        await reader.readuntil(b"\r\n\r\n")
        draining = asyncio.create_task(server.drain())
        found = 0
        while data := await reader.read(1 << 20):
            found += len(data)
        await draining
        assert found == size
        writer.close()


async def test_an_address_in_use(server: RestServer, colours: Bundle) -> None:
    async with server:
        port = server._server.sockets[0].getsockname()[1]
        settings = Settings(repository=colours.path.parents[1], http_address=f"127.0.0.1:{port}")
        other = RestServer(settings, Process(settings)._server.services)
        with pytest.raises(AddressError, match=f"cannot listen on 127.0.0.1:{port}"):
            await other.__aenter__()
