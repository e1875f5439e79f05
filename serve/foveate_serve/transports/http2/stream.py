"""One stream of a connection; a subclass answers it."""

import asyncio
from collections import deque

STREAM_WINDOW = 1 << 20
"""Bytes that a client may send on a stream before the server credits them."""


class Stream:
    """The state of a stream, and the events that a subclass handles."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.receive_window = STREAM_WINDOW
        self.owed = 0
        """Bytes taken that no WINDOW_UPDATE has credited."""
        self.ended_by_client = False
        self.closed = False
        self.send_window = 0
        """Bytes that the client takes on it, beyond those of a new stream; may be negative."""
        self.outbox: deque[memoryview] = deque()
        self.trailers: bytes | None = None
        self.drained: asyncio.Future[None] | None = None

    def received(self, data: memoryview) -> None:
        """Handle bytes of the stream, valid until this returns; the subclass credits them."""

    def ended(self) -> None:
        """Handle the end of the client's bytes."""

    def cut_off(self) -> None:
        """Cancel the work on the stream, because the server stops."""

    def lost(self) -> None:
        """Handle a reset of the stream, or the loss of its connection."""
