"""Reads the bodies of requests, within limits of bytes and of time."""

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta

from google.rpc.code_pb2 import Code
from starlette.requests import ClientDisconnect, Request

from foveate.status import StatusError
from foveate_serve.errors import OverloadedError, quote
from foveate_serve.rest.errors import client_gone, failure

BODY_SECONDS = 60.0
"""The time that a client has to send a body."""

STALLED_SECONDS = 1.0
"""The seconds without a byte after which a body may be dropped to make room for another."""

_RETRY = timedelta(seconds=1)


@dataclass(eq=False)
class _Reading:
    """A body that is being read: its size so far, the time of its last byte, and `given_up`."""

    at: float
    task: asyncio.Task[bytes] | None = None
    size: int = 0
    given_up: bool = False


class Bodies:
    """Reads bodies of up to `limit` bytes; all that are read at one time have up to `total`.

    At the total, a body without a byte for a second is dropped: a client that stops sending
    does not exclude others.
    """

    def __init__(self, *, limit: int, total: int) -> None:
        self._limit = limit
        self._total = total
        self._held = 0
        # The one that has had no bytes for the longest comes first.
        self._reading: dict[_Reading, None] = {}

    async def read(self, request: Request) -> bytes:
        """Return the body of a request; raises StatusError and OverloadedError."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":
            raise failure(
                Code.INVALID_ARGUMENT,
                "CONTENT_ENCODING_UNSUPPORTED",
                f"the content encoding {quote(encoding)} is not supported; send the body as it is",
            )
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._limit:
            raise self._too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._collected(request)
        except TimeoutError as error:
            raise failure(
                Code.DEADLINE_EXCEEDED,
                "BODY_TOO_SLOW",
                f"the body did not arrive within {BODY_SECONDS:g} s",
            ) from error
        except ClientDisconnect as error:
            raise client_gone() from error

    async def _collected(self, request: Request) -> bytes:
        """Collect a body in a task of its own, which the reading of another may cancel."""
        reading = _Reading(time.monotonic())
        self._reading[reading] = None
        reading.task = asyncio.create_task(self._collect(request, reading))
        try:
            return await reading.task
        except asyncio.CancelledError:
            if reading.given_up:
                raise self._too_many() from None
            raise
        finally:
            self._forget(reading)

    async def _collect(self, request: Request, reading: _Reading) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            reading.size += len(chunk)
            self._held += len(chunk)
            if len(body) > self._limit:
                raise self._too_large()
            reading.at = time.monotonic()
            # To the end.
            del self._reading[reading]
            self._reading[reading] = None
            while self._held > self._total:
                stalled = next(iter(self._reading))
                if reading.at - stalled.at < STALLED_SECONDS:
                    raise self._too_many()
                self._give_up(stalled)
        return bytes(body)

    def _give_up(self, reading: _Reading) -> None:
        reading.given_up = True
        self._forget(reading)
        if reading.task is not None:
            reading.task.cancel()

    def _forget(self, reading: _Reading) -> None:
        self._reading.pop(reading, None)
        self._held -= reading.size
        reading.size = 0

    def _too_many(self) -> OverloadedError:
        return OverloadedError(
            "TOO_MANY_BYTES",
            f"the bodies that are being read have more than {self._total} bytes",
            retry_delay=_RETRY,
            metadata={"limit": self._total},
        )

    def _too_large(self) -> StatusError:
        return failure(
            Code.INVALID_ARGUMENT,
            "BODY_TOO_LARGE",
            f"the body is too large; the limit is {self._limit} bytes (max_message_bytes)",
        )
