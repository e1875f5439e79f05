"""The gRPC servicers: pass calls to `handlers`, with their deadlines, and abort on errors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

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
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceServicer
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
from foveate.v1.repository_service_pb2_grpc import RepositoryServiceServicer
from foveate_serve.rpc.calls import STOPPING, Context, Until, abort, abort_on_error, deadline_of
from foveate_serve.rpc.handlers import ClassifierHandler, RepositoryHandler


class ClassifierServicer(ClassifierServiceServicer):
    """ClassifierService. When `stopping` is set, streams end after the requests read so far."""

    def __init__(self, handler: ClassifierHandler, stopping: asyncio.Event) -> None:
        self._handler = handler
        self._stopping = stopping

    async def Classify(self, request: ClassifyRequest, context: Context) -> ClassifyResponse:  # noqa: N802, D102
        return await abort_on_error(context, self._handler.classify(request, deadline_of(context)))

    async def ClassifyStream(  # noqa: N802, D102
        self, request_iterator: AsyncIterator[ClassifyStreamRequest], context: Context
    ) -> AsyncIterator[ClassifyStreamResponse]:
        async with aclosing(Until(request_iterator, self._stopping)) as requests:
            responses = self._handler.classify_stream(requests, deadline_of(context))
            async with aclosing(responses):
                async for response in responses:
                    yield response
        if requests.cut:
            await abort(context, STOPPING)

    async def ListModels(  # noqa: N802, D102
        self, request: ListModelsRequest, context: Context
    ) -> ListModelsResponse:
        return await abort_on_error(context, self._handler.list_models(request))

    async def GetModel(self, request: GetModelRequest, context: Context) -> GetModelResponse:  # noqa: N802, D102
        return await abort_on_error(context, self._handler.get_model(request))


class RepositoryServicer(RepositoryServiceServicer):
    """RepositoryService."""

    def __init__(self, handler: RepositoryHandler) -> None:
        self._handler = handler

    async def LoadModel(self, request: LoadModelRequest, context: Context) -> LoadModelResponse:  # noqa: N802, D102
        return await abort_on_error(context, self._handler.load_model(request))

    async def UnloadModel(  # noqa: N802, D102
        self, request: UnloadModelRequest, context: Context
    ) -> UnloadModelResponse:
        return await abort_on_error(context, self._handler.unload_model(request))

    async def ReloadModel(  # noqa: N802, D102
        self, request: ReloadModelRequest, context: Context
    ) -> ReloadModelResponse:
        return await abort_on_error(context, self._handler.reload_model(request))

    async def SetVersionLabels(  # noqa: N802, D102
        self, request: SetVersionLabelsRequest, context: Context
    ) -> SetVersionLabelsResponse:
        return await abort_on_error(context, self._handler.set_version_labels(request))
