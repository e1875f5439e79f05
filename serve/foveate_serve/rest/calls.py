"""What every request passes: gates, request id, body, errors, observers and the log."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import grpc
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from foveate_serve.log_context import CLIENT
from foveate_serve.rest.bodies import Bodies
from foveate_serve.rest.errors import client_gone, error_response
from foveate_serve.rpc.calls import GRPC_CODES
from foveate_serve.rpc.errors import status_of
from foveate_serve.rpc.interceptor import (
    REQUEST_ID_KEY,
    CallRecord,
    HttpExchange,
    enter_call,
    log_call,
)
from foveate_serve.rpc.overload import MODEL_KEY
from foveate_serve.rpc.server import Services

Respond: TypeAlias = Callable[[Request, bytes], Awaitable[Response]]
"""Answers a request with its body, which is empty where the route takes none."""

Endpoint: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]


class _Details(NamedTuple):
    """What gates read of a call."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...]


class Calls:
    """Makes endpoints: each is a call of its route's method of gRPC.

    Permission, load shedding, metrics and traces are those of that method.
    """

    def __init__(self, services: Services, bodies: Bodies, *, log: bool) -> None:
        self._services = services
        self._bodies = bodies
        self._log = log

    def endpoint(self, method: str, respond: Respond, *, takes_body: bool) -> Endpoint:
        """Return what answers a route with `respond`."""

        async def answer(request: Request) -> Response:
            metadata = _metadata(request)
            request_id = enter_call(metadata)
            CLIENT.set(partial(_peer, request))
            route = str(getattr(request.scope.get("route"), "path", ""))
            http = HttpExchange(verb=request.method, route=route, scheme=request.url.scheme)
            record = CallRecord(method=method, metadata=metadata, http=http)
            with self._observed(record, request):
                try:
                    response = await self._respond(record, request, respond, takes_body)
                except Exception as error:  # noqa: BLE001 - unexpected ones are logged
                    status = status_of(error)
                    record.code = GRPC_CODES[status.code]
                    response = error_response(status)
                http.status = response.status_code
            response.headers[REQUEST_ID_KEY] = request_id
            return response

        return answer

    async def _respond(
        self, record: CallRecord, request: Request, respond: Respond, takes_body: bool
    ) -> Response:
        details: Any = _Details(record.method, tuple(record.metadata.items()))  # type: ignore[arg-type]
        for gate in self._services.gates:
            gate(details)
        body = await self._bodies.read(request) if takes_body else b""
        if not takes_body:
            return await respond(request, body)
        return await _while_connected(request.receive, respond(request, body))

    @contextmanager
    def _observed(self, record: CallRecord, request: Request) -> Iterator[None]:
        started = time.perf_counter()
        with ExitStack() as stack:
            for observe in self._services.observers:
                stack.enter_context(observe(record))
            try:
                yield
            except asyncio.CancelledError:
                record.code = grpc.StatusCode.CANCELLED
                raise
            finally:
                if self._log:
                    log_call(record, _peer(request), time.perf_counter() - started)


def _metadata(request: Request) -> Mapping[str, str]:
    """Return the headers as metadata; the path names the model."""
    metadata = dict(request.headers.items())
    if model := request.path_params.get("model"):
        metadata[MODEL_KEY] = model
    return metadata


def _peer(request: Request) -> str:
    return "" if request.client is None else f"http:{request.client.host}:{request.client.port}"


async def _while_connected(receive: Receive, work: Awaitable[Response]) -> Response:
    """Await `work`, and cancel it where the client goes away."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        raise client_gone()
    finally:
        working.cancel()
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
