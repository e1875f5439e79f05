"""The gRPC servicer: passes calls to `handler`, with their deadlines, and aborts on errors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from foveate.inference import open_inference_pb2 as pb
from foveate.inference.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from foveate_serve.rpc.calls import STOPPING, Context, Until, abort, abort_on_error, deadline_of
from foveate_serve.rpc.oip.handler import InferenceHandler


class InferenceServicer(GRPCInferenceServiceServicer):
    """GRPCInferenceService. When `stopping` is set, streams end after the requests read so far."""

    def __init__(self, handler: InferenceHandler, stopping: asyncio.Event) -> None:
        self._handler = handler
        self._stopping = stopping

    async def ServerLive(  # noqa: N802, D102
        self,
        request: pb.ServerLiveRequest,  # noqa: ARG002
        context: Context,
    ) -> pb.ServerLiveResponse:
        return await abort_on_error(context, self._handler.server_live())

    async def ServerReady(  # noqa: N802, D102
        self,
        request: pb.ServerReadyRequest,  # noqa: ARG002
        context: Context,
    ) -> pb.ServerReadyResponse:
        return await abort_on_error(context, self._handler.server_ready())

    async def ModelReady(  # noqa: N802, D102
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        return await abort_on_error(context, self._handler.model_ready(request))

    async def ServerMetadata(  # noqa: N802, D102
        self,
        request: pb.ServerMetadataRequest,  # noqa: ARG002
        context: Context,
    ) -> pb.ServerMetadataResponse:
        return await abort_on_error(context, self._handler.server_metadata())

    async def ModelMetadata(  # noqa: N802, D102
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        return await abort_on_error(context, self._handler.model_metadata(request))

    async def ModelConfig(  # noqa: N802, D102
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        return await abort_on_error(context, self._handler.model_config(request))

    async def ModelStatistics(  # noqa: N802, D102
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        return await abort_on_error(context, self._handler.model_statistics(request))

    async def RepositoryIndex(  # noqa: N802, D102
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        return await abort_on_error(context, self._handler.repository_index(request))

    async def RepositoryModelLoad(  # noqa: N802, D102
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        return await abort_on_error(context, self._handler.load_model(request))

    async def RepositoryModelUnload(  # noqa: N802, D102
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        return await abort_on_error(context, self._handler.unload_model(request))

    async def ModelInfer(  # noqa: N802, D102
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        return await abort_on_error(context, self._handler.infer(request, deadline_of(context)))

    async def ModelStreamInfer(  # noqa: N802, D102
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        async with aclosing(Until(request_iterator, self._stopping)) as requests:
            responses = self._handler.stream_infer(requests, deadline_of(context))
            async with aclosing(responses):
                async for response in responses:
                    yield response
        if requests.cut:
            await abort(context, STOPPING)
