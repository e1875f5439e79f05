"""The interceptor of every call: gates, request id, parsing, errors, observers and the log."""

import asyncio
import inspect
import logging
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, TypeAlias

import grpc

from foveate.status import ErrorStatus
from foveate_serve.errors import ServeError
from foveate_serve.log_context import CLIENT, FIELDS, REQUEST_ID
from foveate_serve.rpc.calls import (
    GRPC_CODES,
    Context,
    Continuation,
    Gate,
    Trailers,
    abort,
    trailers_of,
)
from foveate_serve.rpc.errors import status_of
from foveate_serve.rpc.priority import CALL_PRIORITY, PRIORITY_KEY
from foveate_serve.transports.base import MethodHandler, behaviour_of, make_handler

logger = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
"""The metadata key of a call's id: the client's own, or one that the server makes."""

UNKNOWN = "unknown"
"""Replaces a method that no service has: clients can make up any number of them."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# Seeded once from the system: an id must be unique, and is no secret.
_random = random.Random(secrets.randbits(128))  # noqa: S311
_NO_OBSERVATION = nullcontext()
_Metadata: TypeAlias = Mapping[str, str | bytes]


@dataclass(kw_only=True)
class HttpExchange:
    """What HTTP adds to a call: `status` is set when it ends."""

    verb: str
    route: str
    scheme: str
    status: int = 0


@dataclass(kw_only=True)
class CallRecord:
    """One call: `method` is such as "/package.Service/Method", or UNKNOWN.

    `code` is set when it ends. `http` is what a request over HTTP adds.
    """

    method: str
    metadata: Mapping[str, str | bytes]
    code: grpc.StatusCode = grpc.StatusCode.OK
    http: HttpExchange | None = None


CallObserver = Callable[[CallRecord], AbstractContextManager[None]]
"""A context manager around a call, entered and left in the call's own task."""


class _Handlers(NamedTuple):
    """The handler of a method, None where there is no such method, and that of its refusals."""

    respond: MethodHandler | None
    refuse: MethodHandler


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Runs the gates, sets the request id, parses the request, and notifies `observers`.

    The first of `gates` to raise ends the call before its message is read. The
    exception of a gate or a handler becomes the call's status here, and nowhere else. `log`
    writes a line for each call. A single interceptor does all of this, because each
    one costs every call a coroutine or two.
    """

    def __init__(
        self,
        gates: Sequence[Gate] = (),
        observers: Sequence[CallObserver] = (),
        *,
        log: bool = False,
    ) -> None:
        self._gates = tuple(gates)
        self._observers = tuple(observers)
        self._log = log
        self._handlers: dict[str, _Handlers] = {}
        self._unknown = _Handlers(None, self._wrap(_REFUSING, UNKNOWN))

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> MethodHandler | None:
        """Return the call's handler, or the one that refuses it."""
        method = handler_call_details.method
        handlers = self._handlers.get(method)
        if handlers is None:
            found = await continuation(handler_call_details)
            if found is None:
                # Not cached: a client can make up any number of methods.
                handlers = self._unknown
            else:
                handlers = _Handlers(self._wrap(found, method), self._wrap(_REFUSING, method))
                self._handlers[method] = handlers
        try:
            for gate in self._gates:
                gate(handler_call_details)
        except ServeError as error:
            # The handler runs in the same task as this.
            _REFUSAL.set(_refusal_of(error.with_traceback(None)))
            return handlers.refuse
        return handlers.respond

    def _wrap(self, handler: MethodHandler, method: str) -> MethodHandler:
        behaviour = behaviour_of(handler)
        # A single request is parsed here: gRPC would parse it before the handler, where the
        # error cannot be caught. It parses the requests of a stream within the handler.
        read: Any = None if handler.request_streaming else handler.request_deserializer
        observed = self._observed if self._observers or self._log else None

        async def respond(request: object, context: Context) -> object:
            metadata = _start_call(context)
            with observed(method, context, metadata) if observed else _NO_OBSERVATION:
                try:
                    return await behaviour(request if read is None else read(request), context)
                except Exception as error:  # noqa: BLE001 - unexpected ones are logged
                    await _abort_for(error, context)

        async def respond_stream(request: object, context: Context) -> AsyncIterator[object]:
            metadata = _start_call(context)
            with observed(method, context, metadata) if observed else _NO_OBSERVATION:
                try:
                    messages = request if read is None else read(request)
                    async with aclosing(behaviour(messages, context)) as responses:
                        async for response in responses:
                            yield response
                except Exception as error:  # noqa: BLE001
                    await _abort_for(error, context)

        return make_handler(
            respond_stream if inspect.isasyncgenfunction(behaviour) else respond,
            streaming=(handler.request_streaming, handler.response_streaming),
            read=handler.request_deserializer if handler.request_streaming else _unparsed,
            write=handler.response_serializer,
        )

    @contextmanager
    def _observed(self, method: str, context: Context, metadata: _Metadata) -> Iterator[None]:
        call = CallRecord(method=method, metadata=metadata)
        # Read now: once a call has ended, gRPC reads freed memory for it.
        peer = context.peer() if self._log else ""
        started = time.perf_counter()
        with ExitStack() as stack:
            for observe in self._observers:
                stack.enter_context(observe(call))
            try:
                yield
            except BaseException as error:
                call.code = _code(error, context)
                raise
            finally:
                if self._log:
                    log_call(call, peer, time.perf_counter() - started)


_Refusal: TypeAlias = tuple[ErrorStatus, Trailers]
_REFUSAL: ContextVar[_Refusal] = ContextVar("refusal")


@lru_cache
def _refusal_of(error: ServeError) -> _Refusal:
    """Return the end of the calls that a gate refuses with the same error object."""
    status = status_of(error)
    return status, trailers_of(status)


async def _refuse(_requests: object, context: Context) -> NoReturn:
    await abort(context, *_REFUSAL.get())


# A streaming handler works for every kind of call, and does not wait for the message.
_REFUSING: MethodHandler = grpc.stream_stream_rpc_method_handler(_refuse)


async def _abort_for(error: Exception, context: Context) -> NoReturn:
    if isinstance(error, grpc.aio.BaseError):
        raise error  # the call has ended
    status = status_of(error)
    await abort(context, status, trailers_of(status))


def _unparsed(message: bytes) -> bytes:
    """Return a message as its bytes: parsing follows in the wrapper."""
    return message


def _start_call(context: Context) -> _Metadata:
    """Set the request id and the priority of a call; return its metadata."""
    metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
    CLIENT.set(context.peer)
    context.set_trailing_metadata(((REQUEST_ID_KEY, enter_call(metadata)),))
    return metadata


def enter_call(metadata: Mapping[str, Any]) -> str:
    """Set the request id and the priority that the metadata names; return the id."""
    request_id = _request_id(metadata.get(REQUEST_ID_KEY))
    # Neither is reset: the context belongs to the call's task and ends with it.
    REQUEST_ID.set(request_id)
    if PRIORITY_KEY in metadata:
        CALL_PRIORITY.set(metadata[PRIORITY_KEY])
    return request_id


def _request_id(given: object) -> str:
    if isinstance(given, str) and _REQUEST_ID.fullmatch(given):
        return given
    return f"{_random.getrandbits(64):016x}"


def _code(error: BaseException, context: Context) -> grpc.StatusCode:
    if isinstance(error, grpc.aio.AbortError):
        code: Any = context.code()
        return code if isinstance(code, grpc.StatusCode) else GRPC_CODES[code]
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        left = context.time_remaining()
        late = left is not None and left <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    return grpc.StatusCode.UNKNOWN


def log_call(call: CallRecord, peer: str, seconds: float) -> None:
    """Write the line of a call that has ended."""
    logger.info(
        "%s %s in %.1f ms",
        call.method,
        call.code.name,
        1000 * seconds,
        extra={
            FIELDS: {
                "method": call.method,
                "code": call.code.name,
                "seconds": round(seconds, 6),
                "peer": peer,
            }
        },
    )
