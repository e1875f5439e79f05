"""Listens for HTTP, and drains."""

import asyncio
import logging
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Self

from uvicorn import Config
from uvicorn.server import ServerState

from foveate_serve.rest.app import make_app
from foveate_serve.rest.connection import BoundedConnection
from foveate_serve.rpc.server import AddressError, Services
from foveate_serve.settings import Settings
from foveate_serve.transports.base import FLUSH_SECONDS
from foveate_serve.transports.tls import renewed_context, tls_files

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75
"""How long a connection without a request is kept: longer than the pools of most clients do."""

MAX_HEAD_BYTES = 32 << 10
"""The largest head of a request: its line and all of its headers."""


class RestServer(AbstractAsyncContextManager["RestServer"]):
    """Answers HTTP on `settings.http_address`, from entering to leaving the context.

    `services` are those of the gRPC server. Entering raises AddressError, and
    SettingsError where the files of TLS are bad.
    """

    def __init__(self, settings: Settings, services: Services) -> None:
        self._settings = settings
        self._state = ServerState()
        self._config = Config(
            make_app(settings, services),
            http=BoundedConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            # The next request of a connection must not begin with the priority of the last.
            reset_contextvars=True,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._config.load()
        # Every request that a client sends badly would be a line of the log.
        for name in ("uvicorn.error", "python_multipart.multipart"):
            logging.getLogger(name).setLevel(logging.ERROR)
        address, tls = self._settings.http_address or "", tls_files(self._settings)
        host, _, port = address.rpartition(":")
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._connection,
                host.strip("[]"),
                int(port),
                ssl=None if tls is None else renewed_context(tls, "http/1.1"),
                # Only workers share a port: a second server on it must fail.
                reuse_port=self._settings.workers > 1 or None,
            )
        except OSError as error:
            raise AddressError(address, error) from error
        number = self._server.sockets[0].getsockname()[1]
        logger.info("HTTP on http%s://%s:%d", "" if tls is None else "s", host, number)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    async def drain(self) -> None:
        """Serve on for `shutdown_delay`, then finish the requests in flight."""
        await asyncio.sleep(self._settings.shutdown_delay)
        self._close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks.copy(), timeout=self._settings.shutdown_timeout)
        if self._state.connections and not self._state.tasks:
            self._empty.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), FLUSH_SECONDS)
        self.abort()

    def abort(self) -> None:
        """Stop at once; requests in flight get no answer."""
        self._close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        for task in self._state.tasks:
            task.cancel()

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _connection(self) -> asyncio.Protocol:
        made = BoundedConnection(self._config, self._state, {})
        made.on_lost = self._on_lost
        return made

    def _on_lost(self) -> None:
        if not self._state.connections:
            self._empty.set()
