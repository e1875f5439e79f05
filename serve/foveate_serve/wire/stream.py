"""One stream of a connection, to be answered by a subclass."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveate_serve.wire.connection import Connection

STREAM_WINDOW = 1 << 20
"""What a client may send on a stream before it hears that it was taken."""


class Stream:
    """What is known of a stream, and what it hears."""

    def __init__(self, connection: "Connection", number: int) -> None:
        self.connection = connection
        self.number = number
        self.receive_window = STREAM_WINDOW
        self.owed = 0
        """Bytes taken that the client has not heard of."""
        self.ended_by_client = False
        self.closed = False
        self.send_window = connection.sender.stream_window
        self.outbox: deque[memoryview] = deque()
        self.trailers: bytes | None = None
        self.drained: asyncio.Future[None] | None = None

    def received(self, data: memoryview) -> None:
        """Take bytes of the stream, valid until this returns; they are to be credited."""

    def ended(self) -> None:
        """Hear that the client sends no more."""

    def lost(self) -> None:
        """Hear that the client has reset the stream, or is gone."""
