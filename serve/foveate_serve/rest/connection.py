"""A connection of HTTP/1.1, which a client may not hold open by sending slowly, or nothing."""

import asyncio
from collections.abc import Callable

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from foveate_serve.files import HTTP_SHARE, connections_within

MAX_CONNECTIONS = 1024
"""The most connections, of which there are fewer where the open files are few."""
SLOW_SECONDS = 20.0
"""The time that a client has to send the head of a request, or the rest of one that is refused."""


class BoundedConnection(H11Protocol):
    """uvicorn's connection, with a bound of their number and of what a slow client can do.

    uvicorn waits for the head of a request without end, and for the body of one that it
    has answered.
    """

    _slow: asyncio.TimerHandle | None = None
    on_lost: Callable[[], None] | None = None
    """Called when the connection is closed, after all that was written to it has been sent."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless there are too many."""
        if len(self.connections) >= connections_within(MAX_CONNECTIONS, share=HTTP_SHARE):
            transport.abort()
            return
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection."""
        if self.transport is None:
            return  # it was refused
        super().connection_lost(exc)
        self._stop_watching()
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Read what the client sent."""
        if self.transport is None:
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Start or stop the timer, as the server waits for the client or not."""
        if self._is_waiting():
            if self._slow is None:
                self._slow = self.loop.call_later(SLOW_SECONDS, self.transport.abort)
        else:
            self._stop_watching()

    def _is_waiting(self) -> bool:
        if self.cycle is None:
            return True  # for its first request
        if not self.cycle.response_complete:
            return False  # the body has a timeout of its own
        # Between two requests uvicorn's keep-alive timer runs.
        idle = self.conn.their_state in {h11.IDLE, h11.DONE, h11.MUST_CLOSE, h11.CLOSED}
        return not idle or bool(self.conn.trailing_data[0])

    def _stop_watching(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
