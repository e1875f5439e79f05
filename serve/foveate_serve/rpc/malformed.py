"""Bytes that are no message of their method: INVALID_ARGUMENT, as any other bad argument.

gRPC alone answers UNKNOWN with the text of Python's exception, and logs a
traceback for each.
"""

import inspect
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import Code

from foveate.status import ErrorStatus
from foveate_serve.rpc.calls import Context, Continuation, Handler, abort

MALFORMED = ErrorStatus(
    code=Code.INVALID_ARGUMENT,
    reason="MESSAGE_MALFORMED",
    message="the bytes of the request are no message of this method",
)


class MalformedInterceptor(grpc.aio.ServerInterceptor):
    """Reads the requests of every call; the last of the interceptors, so that others come first."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Put the call's handler behind the reading of its requests."""
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                # Not kept: a client can make up any number of methods.
                return None
            self._wrapped[method] = _wrap(handler)
        return self._wrapped[method]


def _wrap(handler: "grpc.RpcMethodHandler[Any, Any]") -> Handler:
    behaviour: Any = (
        handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
    )
    # gRPC reads a lone request before it calls its handler, and those of a
    # stream within it, where the error can be caught.
    streaming = handler.request_streaming
    read: Any = (lambda request: request) if streaming else handler.request_deserializer

    async def answer(request: object, context: Context) -> object:
        try:
            return await behaviour(read(request), context)
        except DecodeError:
            await abort(context, MALFORMED)

    async def answers(request: object, context: Context) -> AsyncIterator[object]:
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
        answers if inspect.isasyncgenfunction(behaviour) else answer,
        request_deserializer=handler.request_deserializer if streaming else None,
        response_serializer=handler.response_serializer,
    )
    return wrapped
