"""Helpers of every servicer: deadlines, aborts with details, and the end of streams."""

import asyncio
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
from google.rpc.code_pb2 import Code

from foveate.status import PUSHBACK_KEY, TRAILER, ErrorStatus, StatusError

T = TypeVar("T")

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Trailers: TypeAlias = tuple[tuple[str, str | bytes], ...]
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]
Gate: TypeAlias = Callable[[grpc.HandlerCallDetails], Handler]
"""Returns a handler that refuses the call, or None to admit it; runs in the call's own task."""

STOPPING = ErrorStatus(
    code=Code.UNAVAILABLE, reason="STOPPING", message="the server is stopping; try another"
)

GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
"""The codes of the grpc package, by number."""


class Until(AsyncIterator[T]):
    """The items of `source` until `event` is set; `cut` says whether that ended the items."""

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


def deadline_of(context: Context) -> float | None:
    """Return the call's deadline as a time of `time.monotonic`, None where it has none."""
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left


async def abort_on_error(context: Context, call: Awaitable[T]) -> T:
    """Return the result of `call`; where it raises StatusError, abort with that status."""
    try:
        return await call
    except StatusError as error:
        await abort(context, error.status)


async def abort(context: Context, status: ErrorStatus) -> NoReturn:
    """Abort a call with an error and its details."""
    await abort_with(context, status, trailers_of(status))


async def abort_with(context: Context, status: ErrorStatus, trailers: Trailers) -> NoReturn:
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


def handler_of_refusal(status: ErrorStatus) -> Handler:
    """Return a handler that aborts any call with an error, before its message is read."""

    async def refuse(_requests: object, context: Context) -> NoReturn:
        await abort(context, status)

    # A streaming handler works for every kind of call.
    return grpc.stream_stream_rpc_method_handler(refuse)
