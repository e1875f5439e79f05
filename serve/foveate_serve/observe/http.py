"""A small HTTP server for metrics, probes and the status page: GET and HEAD, no keep-alive."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 8192
MAX_CONNECTIONS = 64
TIMEOUT_SECONDS = 10.0
"""The timeout of a client for sending its request, and again for reading the response."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """An HTTP response."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


Respond = Callable[[str, Mapping[str, str]], Awaitable[Response]]
"""Returns the response to a path and to headers, whose names are in lower case."""


class HttpServer:
    """Serves the responses of `respond` on HOST:PORT."""

    def __init__(self, address: str, respond: Respond) -> None:
        self._address = address
        self._respond = respond
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listen, and return the address with the port that was bound; raises OSError."""
        host, _, port = self._address.rpartition(":")
        self._server = await asyncio.start_server(
            self._on_connection, host.strip("[]"), int(port), limit=MAX_HEAD_BYTES
        )
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Stop listening, and close all connections."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that disconnects, or passes the timeout, gets no response.
        with suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    response = await self._read_and_respond(reader)
                writer.write(response)
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await writer.drain()
            finally:
                writer.close()

    async def _read_and_respond(self, reader: asyncio.StreamReader) -> bytes:
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
            logger.exception("a request to the metrics port failed")
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
