"""Runs a transport whose calls block, such as the local one, in threads for an AsyncClient."""

# ruff: noqa: ASYNC109 - a gRPC timeout is a deadline, which the server gets as well

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

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
from foveate_client._transports.base import Transport

T = TypeVar("T")

# Each waiting call occupies a thread; further calls are queued.
_MOST_CALLS = 64


class ThreadedTransport:
    """Carries the calls of an AsyncClient by a Transport, whose calls block, in threads."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._threads = ThreadPoolExecutor(_MOST_CALLS, thread_name_prefix="foveate-call")

    async def classify(self, request: ClassifyRequest, timeout: float) -> ClassifyResponse:
        """Classify one picture."""
        return await self._run(self._transport.classify, request, timeout)

    async def classify_stream(
        self, requests: AsyncIterable[ClassifyStreamRequest]
    ) -> AsyncGenerator[ClassifyStreamResponse, None]:
        """Classify a stream of pictures, answering in their order."""
        passed_on: SimpleQueue[ClassifyStreamRequest | None] = SimpleQueue()
        reader = asyncio.create_task(_pass_on(requests, passed_on))
        answers = self._transport.classify_stream(iter(passed_on.get, None))
        running: list[asyncio.Future[Any]] = [reader]
        try:
            while True:
                step = self._run(next, answers, None)
                running = [reader, step]
                # A generator cannot be closed while it runs, so a step is never cut off.
                response = await asyncio.shield(step)
                if response is None:
                    await reader
                    return
                yield response
        finally:
            reader.cancel()
            await asyncio.wait(running)
            await self._run(answers.close)

    async def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:
        """List one page of the models."""
        return await self._run(self._transport.list_models, request, timeout)

    async def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:
        """Describe one model."""
        return await self._run(self._transport.get_model, request, timeout)

    async def close(self) -> None:
        """Close the transport, and end the threads."""
        await self._run(self._transport.close)
        self._threads.shutdown()

    def _run(self, call: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)


async def _pass_on(
    requests: AsyncIterable[ClassifyStreamRequest],
    queue: SimpleQueue[ClassifyStreamRequest | None],
) -> None:
    try:
        async for request in requests:
            queue.put(request)
    finally:
        queue.put(None)
