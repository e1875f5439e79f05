"""One stream of a connection, to be answered by a subclass."""

import asyncio
from collections import deque

STREAM_WINDOW = 1 << 20
"""What a client may send on a stream before the server says that it was taken."""


class Stream:
    """What is known of a stream, and what it is told."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.receive_window = STREAM_WINDOW
        self.owed = 0
        """Bytes taken that the client has not heard of."""
        self.ended_by_client = False
        self.closed = False
        self.send_window = 0
        """Bytes that the client takes on it, beyond those of a new stream; may be negative."""
        self.outbox: deque[memoryview] = deque()
        self.trailers: bytes | None = None
        self.drained: asyncio.Future[None] | None = None

    def received(self, data: memoryview) -> None:
        """Take bytes of the stream, valid until this returns; they are to be credited."""

    def ended(self) -> None:
        """The client sends no more."""

    def cut_off(self) -> None:
        """The server stops: end what is worked on."""

    def lost(self) -> None:
        """The client has reset the stream, or is gone."""
