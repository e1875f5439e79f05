"""What every call gets: an id, a line in the log, and those who measure it."""

import asyncio
import inspect
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grpc

from foveate_serve.observe.logs import FIELDS, REQUEST_ID
from foveate_serve.rpc.calls import Context, Continuation, Handler
from foveate_serve.rpc.priority import CALL_PRIORITY, PRIORITY_KEY

logger = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
"""The metadata key of a call's id: the client's own, or one that the server makes."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_HANDLERS = 128
_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(kw_only=True)
class Call:
    """One call: `method` is such as "/package.Service/Method"; `code` is set when it ends."""

    method: str
    metadata: Mapping[str, str | bytes]
    code: grpc.StatusCode = grpc.StatusCode.OK


CallObserver = Callable[[Call], AbstractContextManager[None]]
"""Entered when a call begins, on the call's own task, and left when it has ended."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Gives every call an id, and tells `observers` of it; `log` writes a line for each call."""

    def __init__(self, observers: Sequence[CallObserver] = (), *, log: bool = False) -> None:
        self._observers = tuple(observers)
        self._log = log
        # Bounded, as some handlers are made for one call.
        self._wrapped = lru_cache(maxsize=_HANDLERS)(self._wrap)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Put the call's handler within what is done for every call."""
        handler = await continuation(handler_call_details)
        return handler and self._wrapped(handler, handler_call_details.method)

    def _wrap(self, handler: "grpc.RpcMethodHandler[Any, Any]", method: str) -> Handler:
        behaviour: Any = (
            handler.stream_stream
            or handler.stream_unary
            or handler.unary_stream
            or handler.unary_unary
        )

        async def answer(request: object, context: Context) -> object:
            with self._call(method, context):
                return await behaviour(request, context)

        async def answers(request: object, context: Context) -> AsyncIterator[object]:
            with self._call(method, context):
                async for response in behaviour(request, context):
                    yield response

        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        wrapped: Handler = make(
            answers if inspect.isasyncgenfunction(behaviour) else answer,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    @contextmanager
    def _call(self, method: str, context: Context) -> Iterator[None]:
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        request_id = _request_id(metadata.get(REQUEST_ID_KEY))
        # Neither is reset: the call's task has a context of its own, and ends with it.
        REQUEST_ID.set(request_id)
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        if PRIORITY_KEY in metadata:
            CALL_PRIORITY.set(metadata[PRIORITY_KEY])
        if not self._observers and not self._log:
            yield
            return
        call = Call(method=method, metadata=metadata)
        # Asked for now: once a call has ended, gRPC reads freed memory for it.
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
                    _log(call, peer, time.perf_counter() - started)


def _request_id(given: object) -> str:
    if isinstance(given, str) and _REQUEST_ID.fullmatch(given):
        return given
    return secrets.token_hex(8)


def _code(error: BaseException, context: Context) -> grpc.StatusCode:
    if isinstance(error, grpc.aio.AbortError):
        code: Any = context.code()
        return code if isinstance(code, grpc.StatusCode) else _CODES[code]
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        left = context.time_remaining()
        late = left is not None and left <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    return grpc.StatusCode.UNKNOWN


def _log(call: Call, peer: str, seconds: float) -> None:
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
