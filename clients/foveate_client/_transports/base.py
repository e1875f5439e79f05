"""The interface of a transport, which others may implement.

A transport takes and returns messages of the protocol, and raises
foveate.status.StatusError. The clients convert both to the library's types.
"""

# ruff: noqa: ASYNC109 - a gRPC timeout is a deadline, which the server gets as well

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from typing import Protocol

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


class Transport(Protocol):
    """Carries the calls of a Client. Timeouts are in seconds."""

    def classify(self, request: ClassifyRequest, timeout: float) -> ClassifyResponse:
        """Classify one picture."""
        ...

    def classify_stream(
        self, requests: Iterable[ClassifyStreamRequest]
    ) -> Generator[ClassifyStreamResponse, None, None]:
        """Classify a stream of pictures, answering in their order.

        The next request may come only after earlier answers were taken: a
        transport that reads ahead does so in a thread of its own. Closing the
        generator cancels the stream.
        """
        ...

    def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:
        """List one page of the models."""
        ...

    def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:
        """Describe one model."""
        ...

    def close(self) -> None:
        """Release the resources of the transport, which is not used afterwards."""
        ...


class AsyncTransport(Protocol):
    """Carries the calls of an AsyncClient. Timeouts are in seconds."""

    async def classify(self, request: ClassifyRequest, timeout: float) -> ClassifyResponse:
        """Classify one picture."""
        ...

    def classify_stream(
        self, requests: AsyncIterable[ClassifyStreamRequest]
    ) -> AsyncGenerator[ClassifyStreamResponse, None]:
        """Classify a stream of pictures, answering in their order.

        The next request may come only after earlier answers were taken: a
        transport that reads ahead does so in a task of its own. Closing the
        generator cancels the stream.
        """
        ...

    async def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:
        """List one page of the models."""
        ...

    async def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:
        """Describe one model."""
        ...

    async def close(self) -> None:
        """Release the resources of the transport, which is not used afterwards."""
        ...
