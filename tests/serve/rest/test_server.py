"""The listening server: slow clients, many connections, and addresses."""

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme
from starlette.responses import Response
from starlette.routing import Route

from foveate_runtime.bundle.bundle import Bundle
from foveate_serve.process import Process
from foveate_serve.rest import connection
from foveate_serve.rest.server import RestServer
from foveate_serve.rpc.server import AddressError
from foveate_serve.settings import Settings
from foveate_serve.transports import places
from foveate_serve.transports.places import IDLE_SECONDS, Places

from ...waiting import until

LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def server(colours: Bundle) -> RestServer:
    settings = Settings(repository=colours.path.parents[1], http_address="127.0.0.1:0")
    return RestServer(settings, Process(settings)._server.services)


async def connect(server: RestServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", server.port)


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


async def test_connections_are_bounded(server: RestServer) -> None:
    server._places = Places(1)
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


@pytest.fixture
def secure(colours: Bundle, tmp_path: Path) -> RestServer:
    """Return a server with TLS and eight places."""
    pem = tmp_path / "server.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    settings = Settings(
        repository=colours.path.parents[1],
        http_address="127.0.0.1:0",
        tls_certificate=pem,
        tls_key=pem,
    )
    server = RestServer(settings, Process(settings)._server.services)
    server._places = Places(8)
    return server


async def test_connections_count_before_their_handshake(secure: RestServer) -> None:
    """asyncio's own server tells of a connection once its handshake is done, or never."""
    async with secure, asyncio.timeout(60):
        silent = [await connect(secure) for _ in range(8)]
        closed = [asyncio.create_task(ended(reader)) for reader, _ in silent]
        # One address may have half of the places.
        await until(lambda: sum(task.done() for task in closed) == 4)
        assert not secure._state.connections
        for _, writer in silent:
            writer.close()
        # What never shook hands gives its place back.
        await until(lambda: not secure._places._held)


async def test_who_does_not_shake_hands_gives_way(
    secure: RestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "IDLE_SECONDS", 0.0)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with secure, asyncio.timeout(60):
        silent = [await connect(secure) for _ in range(8)]
        reader, writer = await asyncio.open_connection("127.0.0.1", secure.port, ssl=context)
        writer.write(LIVE)
        assert b"200" in await reader.readuntil(b"\r\n\r\n")
        for _, each in (*silent, (reader, writer)):
            each.transport.abort()
        await until(lambda: not secure._places._held)


ASKED = 500


async def ask_unread(server: RestServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask again and again, and read nothing; return when the server waits for that."""
    # The reader stops at twice its limit.
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
    writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * ASKED)
    await until(lambda: any(each.flow.write_paused for each in server._state.connections))
    return reader, writer


async def test_who_reads_no_answer_is_cut_off(
    server: RestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.2)
    async with server, asyncio.timeout(60):
        _, writer = await ask_unread(server)
        await until(lambda: not server._state.connections)
        writer.transport.abort()


async def test_who_reads_gets_all_answers(
    server: RestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 10.0)
    async with server, asyncio.timeout(60):
        reader, writer = await ask_unread(server)
        found, tail = 0, b""
        while found < ASKED:
            data = await reader.read(1 << 20)
            assert data
            found += (tail + data).count(b"200 OK")
            tail = data[-5:]
        (made,) = server._state.connections
        await until(lambda: made._unread is None)
        writer.close()


async def test_who_reads_no_answer_gives_way_to_a_newcomer(server: RestServer) -> None:
    server._places = Places(2)
    async with server, asyncio.timeout(60):
        _, greedy = await ask_unread(server)
        (waiting,) = server._state.connections
        waiting._idle_since -= IDLE_SECONDS
        reader, writer = await connect(server)
        writer.write(LIVE)
        assert b"200" in await reader.readuntil(b"\r\n\r\n")
        for each in (greedy, writer):
            each.transport.abort()


async def test_tiny_chunks_are_read_in_turns(server: RestServer) -> None:
    """A chunk of one byte costs more than reading it, and one read held 43,000."""
    async with server, asyncio.timeout(60):
        _, writer = await connect(server)
        await until(lambda: len(server._state.connections) == 1)
        (made,) = server._state.connections
        sizes = []
        received = made.data_received
        made.data_received = lambda data: (sizes.append(len(data)), received(data))[1]
        head = (
            b"POST /v1/models/x:classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        writer.write(head + b"1\r\nx\r\n" * 50_000)
        await until(lambda: sum(sizes) > 250_000)
        assert max(sizes) <= connection.READ_BYTES
        writer.transport.abort()


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
        port = server.port
        settings = Settings(repository=colours.path.parents[1], http_address=f"127.0.0.1:{port}")
        other = RestServer(settings, Process(settings)._server.services)
        with pytest.raises(AddressError, match=f"cannot listen on 127.0.0.1:{port}"):
            await other.__aenter__()
