"""The calls that handlers get, and how a call ends with an error."""

import asyncio
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

import grpc

from foveate.status import PUSHBACK_KEY, TRAILER, ErrorStatus
from foveate_serve.transports.base import MethodHandler

T = TypeVar("T")

Context = grpc.aio.ServicerContext[Any, Any]
Trailers: TypeAlias = tuple[tuple[str, str | bytes], ...]
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable[MethodHandler | None]]
Gate: TypeAlias = Callable[[grpc.HandlerCallDetails], None]
"""Admits a call, or raises ServeError; runs in the call's own task."""

GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
"""The codes of the grpc package, by number."""


class Call(Protocol):
    """The interface of a call for its handler."""

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline, None where there is none."""
        ...


class TimedCall:
    """A call that did not come over gRPC, with a timeout in seconds; None is no limit."""

    def __init__(self, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline, None where there is none."""
        return None if self._deadline is None else self._deadline - time.monotonic()


class Until(AsyncIterator[T]):
    """The items of `source` until `event` is set; `cut` is whether that ended the items."""

    def __init__(self, source: AsyncIterable[T], event: asyncio.Event) -> None:
        self.cut = False
        self._source = aiter(source)
        self._event = asyncio.create_task(event.wait())

    async def __anext__(self) -> T:
        item = asyncio.ensure_future(anext(self._source))
        try:
            await asyncio.wait((item, self._event), return_when=asyncio.FIRST_COMPLETED)
            if item.done():
                return await item
        finally:
            item.cancel()
        self.cut = True
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop waiting for the event."""
        self._event.cancel()


def deadline_of(call: Call | None) -> float | None:
    """Return the call's deadline as a time of `time.monotonic`, None where it has none."""
    left = None if call is None else call.time_remaining()
    return None if left is None else time.monotonic() + left


async def abort(context: Context, status: ErrorStatus, trailers: Trailers) -> NoReturn:
    """Abort a call with an error, whose details are in `trailers`."""
    # Keeps the trailers that an interceptor has set.
    trailers = (*(context.trailing_metadata() or ()), *trailers)
    await context.abort(GRPC_CODES[status.code], status.message, trailers)


def trailers_of(status: ErrorStatus) -> Trailers:
    """Return the details of an error as trailing metadata.

    The retry delay is also set under the key that gRPC's own retries read (gRFC A6).
    """
    trailers: Trailers = ((TRAILER, status.to_status().SerializeToString()),)
    if status.retry_delay is None:
        return trailers
    milliseconds = math.ceil(1000 * status.retry_delay.total_seconds())
    return (*trailers, (PUSHBACK_KEY, str(milliseconds)))
