"""Load shedding: refuses calls before their messages are read, while queues are full."""

import time
from collections.abc import Iterable
from typing import Any

import grpc

from foveate.inference import open_inference_pb2
from foveate.v1 import classifier_service_pb2
from foveate_serve.engine.engine import Engine
from foveate_serve.errors import OverloadedError

_SERVICES = (
    (classifier_service_pb2.DESCRIPTOR.services_by_name["ClassifierService"], "Classify"),
    (open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"], "ModelInfer"),
)
METHODS = frozenset(f"/{service.full_name}/{method}" for service, method in _SERVICES)
"""The methods with one request a call. The requests of a stream are refused one by one."""

MODEL_KEY = "x-model"
"""The metadata key under which a call may name its model."""

_CACHE_SECONDS = 0.01
"""How long a model's refusals share one error: the shortest retry delay."""


class OverloadGate:
    """Refuses the calls of `METHODS` while the engine sheds load.

    The engine counts it for the model that the call's metadata names, or an empty string. A
    refused picture is neither received nor parsed, so that shedding load costs little.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # By model that serves: until when it is valid, and the error.
        self._cached: dict[str, tuple[float, OverloadedError]] = {}

    def __call__(self, call: grpc.HandlerCallDetails) -> None:
        """Admit a call; raises OverloadedError, for a while the same, whose status is cached."""
        if not self._engine.overloaded or call.method not in METHODS:
            return
        model = _model(call.invocation_metadata)
        try:
            self._engine.shed_load(model)
        except OverloadedError as error:
            now = time.monotonic()
            until, cached = self._cached.get(model, (0.0, error))
            if now >= until:
                self._cached[model] = now + _CACHE_SECONDS, error
                cached = error
            raise cached from None


def _model(metadata: Iterable[Any]) -> str:
    """Return the model that a call's metadata names, or an empty string."""
    for key, value in metadata:
        if key == MODEL_KEY:
            return str(value)
    return ""
