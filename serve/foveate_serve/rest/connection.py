"""A connection of HTTP/1.1, which a client may not hold open by sending slowly, or nothing.

Nor by reading nothing.
"""

import asyncio
from collections.abc import Callable

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from foveate_serve.transports.places import Place

SLOW_SECONDS = 20.0
"""The time that a client has to send the head of a request, or the rest of one that is refused."""

UNREAD_SECONDS = 20.0
"""The time in which a client must read some of what was written to it."""

READ_BYTES = 16 << 10
"""What is read in one round of the event loop: 6 bytes may be a chunk, which takes 5 µs."""


class BoundedConnection(H11Protocol):
    """uvicorn's connection, with bounds of what a slow client can do.

    uvicorn waits without end for the head of a request, for the body of one that it has
    answered, and for a client that reads no answer. `place` is given back, and `on_lost`
    called, when the connection is closed, after all that was written to it has been sent.
    """

    def __init__(
        self, config: Config, state: ServerState, place: Place, on_lost: Callable[[], None]
    ) -> None:
        super().__init__(config, state, {})
        self._place = place
        self._on_lost = on_lost
        self._slow: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection."""
        if hasattr(transport, "max_size"):  # asyncio's own, in the clear
            transport.max_size = READ_BYTES
        self._idle_since = self.loop.time()
        self._place.connection = self
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection."""
        super().connection_lost(exc)
        self._stop_watching()
        if self._unread is not None:
            self._unread.cancel()
        self._place.release()
        self._on_lost()

    def idle_for(self) -> float:
        """Return for how many seconds the client has asked nothing, or read nothing of an answer.

        0 while it is answered.
        """
        busy = self.cycle is not None and not self.cycle.response_complete
        return 0.0 if busy and not self.flow.write_paused else self.loop.time() - self._idle_since

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read what the client sent."""
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        """Wait for the client to read, for a while."""
        self._idle_since = self.loop.time()
        super().pause_writing()
        self._watch_unread()

    def resume_writing(self) -> None:
        """Go on, as the client has read."""
        super().resume_writing()
        self._watch_unread()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, whose last answer may be unread."""
        super().timeout_keep_alive_handler()
        self._watch_unread()

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        self._idle_since = self.loop.time()
        super().on_response_complete()
        self._watch()
        self._watch_unread()

    def _watch_unread(self) -> None:
        """Give the client time to read what is unread, from now on."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        if left := self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(UNREAD_SECONDS, self._require_less, left)

    def _require_less(self, before: int) -> None:
        """Close the connection where no byte of the answer has been read."""
        self._unread = None
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_unread()

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
