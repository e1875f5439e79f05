"""Load shedding: refuses calls before their messages are read, while queues are full."""

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
"""The methods with one request a call. The requests of a stream are refused one by one."""

MODEL_KEY = "x-model"
"""The metadata key under which a call may name its model."""

_CACHE_SECONDS = 0.01
"""How long a model's refusals share one status: the shortest retry delay."""


class OverloadGate:
    """Refuses the calls of `METHODS` with the error that `shed_load` raises, if it raises one.

    `shed_load` is called with the model that the call's metadata names, or an empty
    string. A refused picture is neither received nor parsed, so that shedding load
    costs little.
    """

    def __init__(self, shed_load: Callable[[str], None]) -> None:
        self._shed_load = shed_load
        # By model that serves: until when it is valid, the status, its trailers.
        self._cached: dict[str, tuple[float, ErrorStatus, Trailers]] = {}
        # One handler for all calls, because the interceptor caches what it makes of a handler.
        # A streaming handler works for every kind of call, and does not wait for the message.
        self._refusing_handler: Handler = grpc.stream_stream_rpc_method_handler(self._refuse)

    def __call__(self, call: grpc.HandlerCallDetails) -> Handler:
        """Refuse a call, or admit it."""
        if call.method not in METHODS:
            return None
        model = _model(call.invocation_metadata)
        try:
            self._shed_load(model)
        except ServeError as error:
            self._cache_status(model, error)
            return self._refusing_handler
        return None

    def _cache_status(self, model: str, error: ServeError) -> None:
        now = time.monotonic()
        until, *_ = self._cached.get(model, (0.0,))
        if now >= until:
            status = to_status(error)
            self._cached[model] = now + _CACHE_SECONDS, status, trailers_of(status)

    async def _refuse(self, _requests: object, context: Context) -> NoReturn:
        _, status, trailers = self._cached[_model(context.invocation_metadata() or ())]
        await abort_with(context, status, trailers)


def _model(metadata: Iterable[Any]) -> str:
    """Return the model that a call's metadata names, or an empty string."""
    for key, value in metadata:
        if key == MODEL_KEY:
            return str(value)
    return ""
