"""The extension point of the clients: what carries calls to an engine.

A transport carries the protocol's own messages and raises
foveate.status.StatusError; the clients turn both into the library's types.
"""

# ruff: noqa: ASYNC109 - gRPC timeouts are deadlines, which travel to the server

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
        generator gives the stream up.
        """
        ...

    def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:
        """List one page of the models."""
        ...

    def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:
        """Describe one model."""
        ...

    def close(self) -> None:
        """Give back what the transport holds. It is not used afterwards."""
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
        generator gives the stream up.
        """
        ...

    async def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:
        """List one page of the models."""
        ...

    async def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:
        """Describe one model."""
        ...

    async def close(self) -> None:
        """Give back what the transport holds. It is not used afterwards."""
        ...
