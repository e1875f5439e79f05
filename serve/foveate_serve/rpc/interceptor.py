"""The interceptor of every call: gates, request id, parsing, observers and the log."""

import asyncio
import inspect
import logging
import random
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import Code

from foveate.status import ErrorStatus
from foveate_serve.log_context import FIELDS, REQUEST_ID
from foveate_serve.rpc.calls import GRPC_CODES, Context, Continuation, Gate, Handler, abort
from foveate_serve.rpc.priority import CALL_PRIORITY, PRIORITY_KEY

logger = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
"""The metadata key of a call's id: the client's own, or one that the server makes."""

UNKNOWN = "unknown"
"""Replaces a method that no service has: clients can make up any number of them."""

MALFORMED = ErrorStatus(
    code=Code.INVALID_ARGUMENT,
    reason="MESSAGE_MALFORMED",
    message="the bytes of the request are no message of this method",
)
"""Without it gRPC sends UNKNOWN with the text of Python's exception, and logs a traceback."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# Seeded once from the system: an id must be unique, and is no secret.
_random = random.Random(secrets.randbits(128))  # noqa: S311
_MAX_REFUSALS = 128
_NO_OBSERVATION = nullcontext()
_Metadata: TypeAlias = Mapping[str, str | bytes]


@dataclass(kw_only=True)
class CallRecord:
    """One call: `method` is such as "/package.Service/Method", or UNKNOWN.

    `code` is set when it ends.
    """

    method: str
    metadata: Mapping[str, str | bytes]
    code: grpc.StatusCode = grpc.StatusCode.OK


CallObserver = Callable[[CallRecord], AbstractContextManager[None]]
"""A context manager around a call, entered and left in the call's own task."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Runs the gates, sets the request id, parses the request, and notifies `observers`.

    The first of `gates` to refuse a call ends it before its message is read. `log`
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
        self._handlers: dict[str, Handler] = {}
        # Bounded, as some refusals are made for one call only.
        self._wrapped_refusal = lru_cache(maxsize=_MAX_REFUSALS)(self._wrap)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Return the call's handler, or that of its refusal, wrapped."""
        method = handler_call_details.method
        for gate in self._gates:
            refusing_handler = gate(handler_call_details)
            if refusing_handler is not None:
                known = method in self._handlers or await continuation(handler_call_details)
                return self._wrapped_refusal(refusing_handler, method if known else UNKNOWN)
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:
                # Not cached: a client can make up any number of methods.
                return None
            self._handlers[method] = self._wrap(handler, method)
        return self._handlers[method]

    def _wrap(self, handler: "grpc.RpcMethodHandler[Any, Any]", method: str) -> Handler:
        behaviour: Any = (
            handler.stream_stream
            or handler.stream_unary
            or handler.unary_stream
            or handler.unary_unary
        )
        streaming = handler.request_streaming
        # A single request is parsed here: gRPC would parse it before the handler, where the
        # error cannot be caught. It parses the requests of a stream within the handler.
        read: Any = (lambda request: request) if streaming else handler.request_deserializer
        observed = self._observed if self._observers or self._log else _unobserved

        async def respond(request: object, context: Context) -> object:
            with observed(method, context, _start_call(context)):
                try:
                    return await behaviour(read(request), context)
                except DecodeError:
                    await abort(context, MALFORMED)

        async def respond_stream(request: object, context: Context) -> AsyncIterator[object]:
            with observed(method, context, _start_call(context)):
                try:
                    async for response in behaviour(read(request), context):
                        yield response
                except DecodeError:
                    await abort(context, MALFORMED)

        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[streaming, handler.response_streaming]
        wrapped: Handler = make(
            respond_stream if inspect.isasyncgenfunction(behaviour) else respond,
            request_deserializer=handler.request_deserializer if streaming else _unparsed,
            response_serializer=handler.response_serializer,
        )
        return wrapped

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
                    _log_call(call, peer, time.perf_counter() - started)


def _unparsed(message: bytes) -> bytes:
    """Return a message as its bytes: parsing follows in the wrapper."""
    return message


def _unobserved(
    method: str,  # noqa: ARG001 - in the place of `_observed`
    context: Context,  # noqa: ARG001
    metadata: _Metadata,  # noqa: ARG001
) -> AbstractContextManager[None]:
    return _NO_OBSERVATION


def _start_call(context: Context) -> _Metadata:
    """Set the request id and the priority of a call; return its metadata."""
    metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
    request_id = _request_id(metadata.get(REQUEST_ID_KEY))
    # Neither is reset: the context belongs to the call's task and ends with it.
    REQUEST_ID.set(request_id)
    context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
    if PRIORITY_KEY in metadata:
        CALL_PRIORITY.set(metadata[PRIORITY_KEY])
    return metadata


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


def _log_call(call: CallRecord, peer: str, seconds: float) -> None:
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
