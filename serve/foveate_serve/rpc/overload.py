"""Refusing calls before their messages are read, while nothing can be taken on."""

from collections.abc import Callable

import grpc

from foveate.inference import open_inference_pb2
from foveate.v1 import classifier_service_pb2
from foveate_serve.errors import ServeError
from foveate_serve.rpc.calls import Continuation, Handler, refusing
from foveate_serve.rpc.errors import to_status

_SERVICES = (
    (classifier_service_pb2.DESCRIPTOR.services_by_name["ClassifierService"], "Classify"),
    (open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"], "ModelInfer"),
)
METHODS = frozenset(f"/{service.full_name}/{method}" for service, method in _SERVICES)
"""The calls of one request each; what a stream carries is refused item by item."""


class OverloadInterceptor(grpc.aio.ServerInterceptor):
    """Refuses the calls of `METHODS` with the error that `refusal` returns, if it returns one.

    A picture that is refused is then neither received nor parsed, so that a
    server spends next to nothing on what it cannot answer.
    """

    def __init__(self, refusal: Callable[[], ServeError | None]) -> None:
        self._refusal = refusal

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Let a call through, or put the refusal in the place of its handler."""
        if handler_call_details.method in METHODS:
            error = self._refusal()
            if error is not None:
                return refusing(to_status(error))
        return await continuation(handler_call_details)
