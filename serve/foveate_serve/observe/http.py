"""A small HTTP server for what operators read: GET and HEAD, one request a connection."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 8192
MAX_CONNECTIONS = 64
SECONDS = 10.0
"""What a client gets to send its request, and again to take the answer."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


Respond = Callable[[str, Mapping[str, str]], Awaitable[Response]]
"""Answers a path, given the headers by their names in lower case."""


class HttpServer:
    """Answers on HOST:PORT with `respond`."""

    def __init__(self, address: str, respond: Respond) -> None:
        self._address = address
        self._respond = respond
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listen, and return the address with the port that was bound; raises OSError."""
        host, _, port = self._address.rpartition(":")
        self._server = await asyncio.start_server(
            self._connected, host.strip("[]"), int(port), limit=MAX_HEAD_BYTES
        )
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Listen no more, and close what is open."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that goes away, or is too slow, is owed nothing.
        with suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            try:
                async with asyncio.timeout(SECONDS):
                    answer = await self._answer(reader)
                writer.write(answer)
                async with asyncio.timeout(SECONDS):
                    await writer.drain()
            finally:
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _encode(_plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        line, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = line.partition(" ")
        path, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return _encode(_plain(HTTPStatus.BAD_REQUEST))
        if method not in {"GET", "HEAD"}:
            return _encode(_plain(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD"}))
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        try:
            response = await self._respond(path.partition("?")[0], headers)
        except Exception:
            logger.exception("a page could not be made")
            response = _plain(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _encode(response, body=method == "GET")


def _plain(status: HTTPStatus, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body=f"{status.phrase}\n".encode(), status=status, headers=headers or {})


def _encode(response: Response, *, body: bool = True) -> bytes:
    headers = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
        **response.headers,
    }
    lines = [f"HTTP/1.1 {response.status.value} {response.status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode("latin-1") + (response.body if body else b"")
