"""The services of `foveate.v1`: each method takes a message and its call, and returns a message.

They raise the errors of `foveate_serve.errors`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar
from weakref import WeakKeyDictionary

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
from foveate_serve.repository.loaded import LoadedModel
from foveate_serve.repository.repository import Repository
from foveate_serve.rpc import convert
from foveate_serve.rpc.bounds import MAX_ID_CHARACTERS, require_short
from foveate_serve.rpc.calls import Call, deadline_of
from foveate_serve.rpc.errors import status_of

A = TypeVar("A")
B = TypeVar("B")


class ClassifierHandler:
    """ClassifierService."""

    def __init__(self, engine: Engine, *, stream_window: int) -> None:
        self._engine = engine
        self._window = stream_window
        # To make one takes ten times as long as to send it: a model has a thousand labels.
        self._described: WeakKeyDictionary[LoadedModel, GetModelResponse] = WeakKeyDictionary()

    async def classify(
        self, request: ClassifyRequest, call: Call | None = None
    ) -> ClassifyResponse:
        """Classify one picture."""
        result = await self._engine.classify(
            convert.to_request(request), deadline=deadline_of(call)
        )
        return convert.from_result(result, timing=request.timing)

    async def classify_stream(
        self, requests: AsyncIterable[ClassifyStreamRequest], call: Call | None = None
    ) -> AsyncGenerator[ClassifyStreamResponse, None]:
        """Classify pictures as they arrive; the responses keep their order."""

        async def classify_item(item: ClassifyStreamRequest) -> ClassifyStreamResponse:
            try:
                require_short(item.request_id, "request_id")
                response = await self.classify(item.request, call)
            except Exception as error:  # noqa: BLE001 - unexpected ones are logged
                return ClassifyStreamResponse(
                    request_id=item.request_id[:MAX_ID_CHARACTERS],
                    error=status_of(error).to_item_error(),
                )
            return ClassifyStreamResponse(request_id=item.request_id, response=response)

        async with aclosing(in_order(requests, classify_item, window=self._window)) as responses:
            async for response in responses:
                yield response

    async def list_models(
        self, request: ListModelsRequest, _: Call | None = None
    ) -> ListModelsResponse:
        """List the models, by name."""
        return convert.page(self._engine.repository.models(), request)

    async def get_model(self, request: GetModelRequest, _: Call | None = None) -> GetModelResponse:
        """Describe one version of one model."""
        model = await self._engine.repository.obtain(request.name, request.version, field="name")
        described = self._described.get(model)
        if described is None:
            described = GetModelResponse(model=convert.from_model(model))
            self._described[model] = described
        return described


class RepositoryHandler:
    """RepositoryService. Every call is refused unless `enabled`.

    Where the repository is `polled`, clients may only change labels.
    """

    def __init__(self, repository: Repository, *, enabled: bool, polled: bool = False) -> None:
        self._repository = repository
        self._enabled = enabled
        self._polled = polled

    async def load_model(
        self, request: LoadModelRequest, _: Call | None = None
    ) -> LoadModelResponse:
        """Load a model."""
        self._require_changes()
        status = await self._repository.load(request.name, request.version)
        return LoadModelResponse(model=convert.from_status(status))

    async def unload_model(
        self, request: UnloadModelRequest, _: Call | None = None
    ) -> UnloadModelResponse:
        """Unload a model."""
        self._require_changes()
        status = await self._repository.unload(request.name, request.version)
        return UnloadModelResponse(model=convert.from_status(status))

    async def reload_model(
        self, request: ReloadModelRequest, _: Call | None = None
    ) -> ReloadModelResponse:
        """Load a model again."""
        self._require_changes()
        status = await self._repository.reload(request.name, request.version)
        return ReloadModelResponse(model=convert.from_status(status))

    async def set_version_labels(
        self, request: SetVersionLabelsRequest, _: Call | None = None
    ) -> SetVersionLabelsResponse:
        """Replace a model's labels."""
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
