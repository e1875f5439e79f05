"""What every servicer does with a call: deadline, answer, abort, and the end of a stream."""

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
"""Returns the handler that refuses a call, or None to let it in; called in the call's own task."""

STOPPING = ErrorStatus(
    code=Code.UNAVAILABLE, reason="STOPPING", message="the server is stopping; try another"
)

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Until(AsyncIterator[T]):
    """The items of `source` until `event` is set; then `cut` is true."""

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


async def answer(context: Context, call: Awaitable[T]) -> T:
    """Await `call`; a StatusError aborts the call of `context`."""
    try:
        return await call
    except StatusError as error:
        await abort(context, error.status)


async def abort(context: Context, status: ErrorStatus) -> NoReturn:
    """End a call with an error and its details."""
    await abort_with(context, status, trailers_of(status))


async def abort_with(context: Context, status: ErrorStatus, trailers: Trailers) -> NoReturn:
    """End a call with an error whose details are written already."""
    # The others are what an interceptor has set for every answer.
    trailers = (*(context.trailing_metadata() or ()), *trailers)
    await context.abort(_CODES[status.code], status.message, trailers)


def trailers_of(status: ErrorStatus) -> Trailers:
    """Return the details of an error as the metadata that ends a call.

    The delay of a RetryInfo stands besides where gRPC's own retries look for it
    (gRFC A6).
    """
    trailers: Trailers = ((TRAILER, status.to_status().SerializeToString()),)
    if status.retry_delay is None:
        return trailers
    milliseconds = math.ceil(1000 * status.retry_delay.total_seconds())
    return (*trailers, (PUSHBACK_KEY, str(milliseconds)))


def refusing(status: ErrorStatus) -> Handler:
    """Return a handler that ends any call with an error, without waiting for its message."""

    async def refuse(_requests: object, context: Context) -> NoReturn:
        await abort(context, status)

    # A streaming handler answers any kind of call.
    return grpc.stream_stream_rpc_method_handler(refuse)
