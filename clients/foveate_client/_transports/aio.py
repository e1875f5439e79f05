"""The transport of an AsyncClient over gRPC."""

# ruff: noqa: ASYNC109 - a gRPC timeout is a deadline, which the server gets as well

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable

import grpc
import grpc.aio

from foveate.status import StatusError
from foveate.v1.classifier_service_pb2 import (
    ClassifyRequest,
    ClassifyResponse,
    ClassifyStreamRequest,
    ClassifyStreamResponse,
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
)
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_client._connection import Compression, Credentials, Retries
from foveate_client._throttle import Throttle, Throttling
from foveate_client._transports.channel import COMPRESSION, PLAINTEXT, Caller
from foveate_client._transports.status import late_status, status_errors, throttled


class AsyncGrpcTransport:
    """Carries the calls of an AsyncClient to a server; its arguments are GrpcTransport's."""

    def __init__(
        self,
        address: str,
        *,
        stall_timeout: float,
        credentials: Credentials | None = None,
        retries: Retries | None = None,
        compression: Compression | None = None,
        throttling: Throttling | None = None,
    ) -> None:
        self._caller = Caller(credentials or PLAINTEXT)
        tls, options = self._caller.prepare(address, retries or Retries())
        chosen = COMPRESSION[compression]
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options, chosen)
        else:
            self._channel = grpc.aio.secure_channel(address, tls, options, chosen)
        self._stub = ClassifierServiceStub(self._channel)
        self._throttle = None if throttling is None else Throttle(throttling)
        self._stall_timeout = stall_timeout

    async def classify(self, request: ClassifyRequest, timeout: float) -> ClassifyResponse:
        """Classify one picture."""
        with status_errors(timeout), throttled(self._throttle):
            return await self._stub.Classify(
                request, timeout=timeout, metadata=self._caller.headers(request.model)
            )

    async def classify_stream(
        self, requests: AsyncIterable[ClassifyStreamRequest]
    ) -> AsyncGenerator[ClassifyStreamResponse, None]:
        """Classify a stream of pictures, answering in their order."""
        unanswered: deque[ClassifyStreamRequest] = deque()

        async def noted() -> AsyncGenerator[ClassifyStreamRequest, None]:
            async for request in requests:
                unanswered.append(request)
                yield request

        call = self._stub.ClassifyStream(noted(), metadata=self._caller.headers())
        try:
            while True:
                with status_errors(self._stall_timeout):
                    try:
                        async with asyncio.timeout(self._stall_timeout):
                            response = await call.read()
                    except TimeoutError as error:
                        raise StatusError(late_status(self._stall_timeout)) from error
                    except grpc.aio.AioRpcError as error:
                        if unanswered and _hides_its_status(error):
                            # Alone, what is too large is refused with the status that was lost.
                            largest = max(unanswered, key=ClassifyStreamRequest.ByteSize)
                            await self.classify(largest.request, self._stall_timeout)
                        raise
                if not isinstance(response, ClassifyStreamResponse):  # grpc.aio.EOF
                    return
                if unanswered:
                    unanswered.popleft()
                yield response
        finally:
            call.cancel()

    async def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:
        """List one page of the models."""
        with status_errors(timeout):
            return await self._stub.ListModels(
                request, timeout=timeout, metadata=self._caller.headers()
            )

    async def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:
        """Describe one model."""
        with status_errors(timeout):
            return await self._stub.GetModel(
                request, timeout=timeout, metadata=self._caller.headers()
            )

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def _hides_its_status(error: grpc.aio.AioRpcError) -> bool:
    """Return whether a message could not be sent because the server had ended the call.

    grpc.aio then reports its own failure, and not the status that the server sends.
    """
    lost = "SendMessageOperation" in (error.debug_error_string() or "")
    return lost and error.code() is grpc.StatusCode.INTERNAL
