"""The services in the caller's own process, without a server."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

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
from foveate_serve.assembly import make_engine
from foveate_serve.rpc.handlers import ClassifierHandler
from foveate_serve.settings import Settings

T = TypeVar("T")


class LocalTransport:
    """ClassifierService over the bundles of `repository`, on an event loop of its own thread.

    Calls take a timeout in seconds and raise `foveate.status.StatusError`; they
    may come from several threads. Opening raises OSError where the repository
    cannot be read; a model that cannot be loaded is listed as failed.
    """

    def __init__(self, repository: Path) -> None:
        settings = Settings(repository=repository)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="foveate-local", daemon=True
        )
        self._thread.start()
        self._engine = make_engine(settings)
        self._handler = ClassifierHandler(self._engine, stream_window=settings.stream_window)
        try:
            self._wait(self._engine.repository.open())
        except OSError:
            self.close()
            raise

    def classify(self, request: ClassifyRequest, timeout: float) -> ClassifyResponse:
        """Classify one picture."""
        return self._wait(self._handler.classify(request, time.monotonic() + timeout))

    def classify_stream(
        self, requests: Iterable[ClassifyStreamRequest], timeout: float | None = None
    ) -> Generator[ClassifyStreamResponse, None, None]:
        """Classify pictures as they come; answers keep the order, and errors belong to theirs.

        `requests` is read on another thread. A timeout is that of the whole stream.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        responses = self._handler.classify_stream(self._read(requests), deadline)

        async def following() -> ClassifyStreamResponse | None:
            return await anext(responses, None)

        try:
            while (response := self._wait(following())) is not None:
                yield response
        finally:
            self._wait(responses.aclose())

    def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:  # noqa: ARG002 - answered from memory
        """List the models, by name."""
        return self._wait(self._handler.list_models(request))

    def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:  # noqa: ARG002 - answered from memory
        """Describe one version of one model."""
        return self._wait(self._handler.get_model(request))

    def close(self) -> None:
        """Finish what runs and release the models."""
        if self._loop.is_closed():
            return
        self._wait(self._engine.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    async def _read(
        self, requests: Iterable[ClassifyStreamRequest]
    ) -> AsyncIterator[ClassifyStreamRequest]:
        # The caller's iterator may block, so it is kept off the event loop.
        iterator = iter(requests)
        while (request := await asyncio.to_thread(next, iterator, None)) is not None:
            yield request
