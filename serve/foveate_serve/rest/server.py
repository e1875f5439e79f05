"""Listens for HTTP, and drains."""

import asyncio
import logging
from contextlib import AbstractAsyncContextManager, suppress
from typing import Self

from uvicorn import Config
from uvicorn.server import ServerState

from foveate_serve.files import HTTP_SHARE, connections_within
from foveate_serve.rest.app import make_app
from foveate_serve.rest.connection import BoundedConnection
from foveate_serve.rpc.server import AddressError, Services
from foveate_serve.settings import Settings
from foveate_serve.transports.base import FLUSH_SECONDS
from foveate_serve.transports.listener import Listener, bind
from foveate_serve.transports.places import Place, Places
from foveate_serve.transports.tls import renewed_context, tls_files

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75
"""How long a connection without a request is kept: longer than the pools of most clients do."""

MAX_CONNECTIONS = 2048
"""The most connections, half of them of one address; fewer where the open files are few."""

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
        self._places = Places(connections_within(MAX_CONNECTIONS, share=HTTP_SHARE))
        self._listeners: list[Listener] = []
        self.port = 0
        self._empty = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._config.load()
        # Every request that a client sends badly would be a line of the log.
        for name in ("uvicorn.error", "python_multipart.multipart"):
            logging.getLogger(name).setLevel(logging.ERROR)
        address, tls = self._settings.http_address or "", tls_files(self._settings)
        context = None if tls is None else renewed_context(tls, "http/1.1")
        try:
            # Only workers share a port: a second server on it must fail.
            bound = await bind(address, share_port=self._settings.workers > 1)
        except OSError as error:
            raise AddressError(address, error) from error
        self._listeners = [Listener(one, self._placed, self._places, context) for one in bound]
        self.port = bound[0].getsockname()[1]
        host = address.rpartition(":")[0]
        logger.info("HTTP on http%s://%s:%d", "" if tls is None else "s", host, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.abort()
        # The sockets of aborted connections are closed in the next round of the event loop.
        await asyncio.sleep(0)

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
        for listener in self._listeners:
            listener.close()

    def _placed(self, place: Place) -> BoundedConnection:
        return BoundedConnection(self._config, self._state, place, self._on_lost)

    def _on_lost(self) -> None:
        if not self._state.connections:
            self._empty.set()
