"""Refusing calls before their messages are read, while what they ask for cannot be taken on."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import grpc

from foveate.inference import open_inference_pb2
from foveate.status import ErrorStatus
from foveate.v1 import classifier_service_pb2
from foveate_serve.errors import ServeError
from foveate_serve.rpc.calls import (
    Context,
    Handler,
    Trailers,
    abort_with,
    trailers_of,
)
from foveate_serve.rpc.errors import to_status

_SERVICES = (
    (classifier_service_pb2.DESCRIPTOR.services_by_name["ClassifierService"], "Classify"),
    (open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"], "ModelInfer"),
)
METHODS = frozenset(f"/{service.full_name}/{method}" for service, method in _SERVICES)
"""The calls of one request each; what a stream carries is refused item by item."""

MODEL_KEY = "x-model"
"""The metadata key under which a call may name the model that its message asks for."""

_KEPT_SECONDS = 0.01
"""Refusals of one model say the same for so long: the least that a delay to come again is."""


class OverloadGate:
    """Refuses the calls of `METHODS` with the error that `refusal` returns, if it returns one.

    It is called with the model that the call's metadata names, or nothing. A
    picture that is refused is then neither received nor parsed, so that a
    server spends little on what it cannot answer.
    """

    def __init__(self, refusal: Callable[[str], ServeError | None]) -> None:
        self._refusal = refusal
        # By model, none but those that serve: until when it holds, the status, its trailers.
        self._kept: dict[str, tuple[float, ErrorStatus, Trailers]] = {}
        # One handler for all, as others keep what they make of a handler.
        # A streaming one answers any kind of call, without waiting for its message.
        self._refusing: Handler = grpc.stream_stream_rpc_method_handler(self._refuse)

    def __call__(self, call: grpc.HandlerCallDetails) -> Handler:
        """Refuse a call, or let it in."""
        if call.method not in METHODS:
            return None
        model = _model(call.invocation_metadata)
        error = self._refusal(model)
        if error is None:
            return None
        self._keep(model, error)
        return self._refusing

    def _keep(self, model: str, error: ServeError) -> None:
        now = time.monotonic()
        until, *_ = self._kept.get(model, (0.0,))
        if now >= until:
            status = to_status(error)
            self._kept[model] = now + _KEPT_SECONDS, status, trailers_of(status)

    async def _refuse(self, _requests: object, context: Context) -> NoReturn:
        _, status, trailers = self._kept[_model(context.invocation_metadata() or ())]
        await abort_with(context, status, trailers)


def _model(metadata: Iterable[Any]) -> str:
    """Return the model that a call's metadata names, or an empty string."""
    for key, value in metadata:
        if key == MODEL_KEY:
            return str(value)
    return ""
