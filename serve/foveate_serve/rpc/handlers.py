"""The services without gRPC: each method takes and returns messages, and raises StatusError."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

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
from foveate.v1.repository_service_pb2 import (
    LoadModelRequest,
    LoadModelResponse,
    ReloadModelRequest,
    ReloadModelResponse,
    SetVersionLabelsRequest,
    SetVersionLabelsResponse,
    UnloadModelRequest,
    UnloadModelResponse,
)
from foveate_serve.engine.engine import Engine
from foveate_serve.errors import ForbiddenError
from foveate_serve.repository.repository import Repository
from foveate_serve.rpc import convert
from foveate_serve.rpc.errors import status_errors

A = TypeVar("A")
B = TypeVar("B")


class ClassifierHandler:
    """ClassifierService. `deadline` is a time of `time.monotonic` or None."""

    def __init__(self, engine: Engine, *, stream_window: int) -> None:
        self._engine = engine
        self._window = stream_window

    async def classify(self, request: ClassifyRequest, deadline: float | None) -> ClassifyResponse:
        """Classify one picture."""
        with status_errors():
            result = await self._engine.classify(convert.to_request(request), deadline=deadline)
            return convert.from_result(result, timing=request.timing)

    async def classify_stream(
        self, requests: AsyncIterable[ClassifyStreamRequest], deadline: float | None
    ) -> AsyncGenerator[ClassifyStreamResponse, None]:
        """Classify pictures as they arrive; the responses keep their order."""

        async def classify_item(item: ClassifyStreamRequest) -> ClassifyStreamResponse:
            try:
                response = await self.classify(item.request, deadline)
            except StatusError as error:
                return ClassifyStreamResponse(
                    request_id=item.request_id, error=error.status.to_item_error()
                )
            return ClassifyStreamResponse(request_id=item.request_id, response=response)

        async with aclosing(in_order(requests, classify_item, window=self._window)) as responses:
            async for response in responses:
                yield response

    async def list_models(self, request: ListModelsRequest) -> ListModelsResponse:
        """List the models, by name."""
        with status_errors():
            return convert.page(self._engine.repository.models(), request)

    async def get_model(self, request: GetModelRequest) -> GetModelResponse:
        """Describe one version of one model."""
        with status_errors():
            model = self._engine.repository.get(request.name, request.version, field="name")
            return GetModelResponse(model=convert.from_model(model))


class RepositoryHandler:
    """RepositoryService. Every call is refused unless `enabled`.

    Where the repository is `polled`, clients may only change labels.
    """

    def __init__(self, repository: Repository, *, enabled: bool, polled: bool = False) -> None:
        self._repository = repository
        self._enabled = enabled
        self._polled = polled

    async def load_model(self, request: LoadModelRequest) -> LoadModelResponse:
        """Load a model."""
        with status_errors():
            self._require_changes()
            status = await self._repository.load(request.name, request.version)
            return LoadModelResponse(model=convert.from_status(status))

    async def unload_model(self, request: UnloadModelRequest) -> UnloadModelResponse:
        """Unload a model."""
        with status_errors():
            self._require_changes()
            status = await self._repository.unload(request.name, request.version)
            return UnloadModelResponse(model=convert.from_status(status))

    async def reload_model(self, request: ReloadModelRequest) -> ReloadModelResponse:
        """Load a model again."""
        with status_errors():
            self._require_changes()
            status = await self._repository.reload(request.name, request.version)
            return ReloadModelResponse(model=convert.from_status(status))

    async def set_version_labels(
        self, request: SetVersionLabelsRequest
    ) -> SetVersionLabelsResponse:
        """Replace a model's labels."""
        with status_errors():
            self._require_enabled()
            status = await self._repository.set_labels(request.name, request.version_labels)
            return SetVersionLabelsResponse(model=convert.from_status(status))

    def _require_enabled(self) -> None:
        if not self._enabled:
            raise ForbiddenError(
                "ADMIN_DISABLED", "loading and unloading models is not enabled on this server"
            )

    def _require_changes(self) -> None:
        self._require_enabled()
        if self._polled:
            raise ForbiddenError(
                "REPOSITORY_POLLED",
                "this server follows its folder (repository_mode poll) and loads no model itself",
            )


async def in_order(
    items: AsyncIterable[A], work: Callable[[A], Awaitable[B]], *, window: int
) -> AsyncGenerator[B, None]:
    """Work on up to `window` items at one time; yield the results in the order of the items."""
    slots = asyncio.Semaphore(window)
    started: asyncio.Queue[asyncio.Future[B] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            await slots.acquire()
            async for item in items:
                started.put_nowait(asyncio.ensure_future(work(item)))
                await slots.acquire()
        finally:
            started.put_nowait(None)

    reader = asyncio.create_task(read())
    working: asyncio.Future[B] | None = None
    try:
        while (working := await started.get()) is not None:
            yield await working
            slots.release()
        await reader
    finally:
        reader.cancel()
        if working is not None:
            working.cancel()
        while not started.empty():
            if (waiting := started.get_nowait()) is not None:
                waiting.cancel()
