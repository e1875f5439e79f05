"""The methods of a service, made from its descriptor and from the class that handles them."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from foveate_serve.errors import StoppingError
from foveate_serve.rpc.bounds import bounded
from foveate_serve.rpc.calls import Call, Until
from foveate_serve.transports.base import make_handler

_WORDS = re.compile(r"(?<!^)(?=[A-Z])")


def method_handlers(
    service: ServiceDescriptor, handler: object, *, stopping: asyncio.Event | None = None
) -> grpc.GenericRpcHandler:
    """Return the methods of a service, for a transport.

    Each calls the method of `handler` of its name in snake case with the request, or
    with the iterator of them, and the call. Where `stopping` is given and set, streams of
    requests end after those read so far, and the call with StoppingError.
    """
    methods = {}
    for method in service.methods:
        behaviour: Any = getattr(handler, _WORDS.sub("_", method.name).lower())
        if method.client_streaming and stopping is not None:
            behaviour = _until(stopping, behaviour)
        methods[method.name] = make_handler(
            behaviour,
            streaming=(method.client_streaming, method.server_streaming),
            read=bounded(GetMessageClass(method.input_type)),
            write=GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _until(stopping: asyncio.Event, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    async def respond(requests: AsyncIterator[object], call: Call) -> AsyncIterator[object]:
        async with (
            aclosing(Until(requests, stopping)) as until,
            aclosing(behaviour(until, call)) as responses,
        ):
            async for response in responses:
                yield response
        if until.cut:
            raise StoppingError

    return respond
