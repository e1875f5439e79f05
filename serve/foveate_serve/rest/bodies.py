"""Reads the bodies of requests, within limits of bytes and of time."""

import asyncio
from datetime import timedelta

from google.rpc.code_pb2 import Code
from starlette.requests import ClientDisconnect, Request

from foveate.status import StatusError
from foveate_serve.errors import OverloadedError, quote
from foveate_serve.rest.errors import client_gone, failure

BODY_SECONDS = 60.0
"""The time that a client has to send a body."""

_RETRY = timedelta(seconds=1)


class Bodies:
    """Reads bodies of up to `limit` bytes; all that are read at one time have up to `total`."""

    def __init__(self, *, limit: int, total: int) -> None:
        self._limit = limit
        self._total = total
        self._held = 0

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
                return await self._collect(request)
        except TimeoutError as error:
            raise failure(
                Code.DEADLINE_EXCEEDED,
                "BODY_TOO_SLOW",
                f"the body did not arrive within {BODY_SECONDS:g} s",
            ) from error
        except ClientDisconnect as error:
            raise client_gone() from error

    async def _collect(self, request: Request) -> bytes:
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                self._held += len(chunk)
                if len(body) > self._limit:
                    raise self._too_large()
                if self._held > self._total:
                    raise OverloadedError(
                        "TOO_MANY_BYTES",
                        f"the bodies that are being read have more than {self._total} bytes",
                        retry_delay=_RETRY,
                        metadata={"limit": self._total},
                    )
        finally:
            self._held -= len(body)
        return bytes(body)

    def _too_large(self) -> StatusError:
        return failure(
            Code.INVALID_ARGUMENT,
            "BODY_TOO_LARGE",
            f"the body is too large; the limit is {self._limit} bytes (max_message_bytes)",
        )
