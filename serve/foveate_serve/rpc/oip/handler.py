"""The Open Inference Protocol: each method takes a message and its call, and returns a message.

They raise the errors of `foveate_serve.errors`.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing

from google.rpc.code_pb2 import Code

from foveate.inference import open_inference_pb2 as pb
from foveate.v1.repository_service_pb2 import ReloadModelRequest, UnloadModelRequest
from foveate_serve.engine.engine import Engine
from foveate_serve.errors import (
    InvalidRequestError,
    LoadingError,
    NotReadyError,
    clip,
    quote,
)
from foveate_serve.repository.labels import LATEST
from foveate_serve.repository.loaded import LoadedModel
from foveate_serve.rpc.bounds import MAX_ID_CHARACTERS, require_short
from foveate_serve.rpc.calls import Call, deadline_of
from foveate_serve.rpc.errors import status_of
from foveate_serve.rpc.handlers import RepositoryHandler, in_order
from foveate_serve.rpc.oip import description
from foveate_serve.rpc.oip.inference import read_request, write_response
from foveate_serve.statistics import Statistics

_UNLOAD_DEPENDENTS = "unload_dependents"
"""A parameter that every client sends. It has no effect: no model depends on another."""


class InferenceHandler:
    """GRPCInferenceService.

    `admin` loads and unloads models. `ready` returns whether the server takes requests.
    `max_images` bounds the pictures of one request, and the requests of one stream that
    are worked on at one time.
    """

    def __init__(
        self,
        engine: Engine,
        statistics: Statistics,
        admin: RepositoryHandler,
        *,
        ready: Callable[[], bool],
        max_images: int,
    ) -> None:
        self._engine = engine
        self._repository = engine.repository
        self._statistics = statistics
        self._admin = admin
        self._ready = ready
        self._max_images = max_images

    async def server_live(
        self, _request: pb.ServerLiveRequest, _: Call | None = None
    ) -> pb.ServerLiveResponse:
        """Report that the server is live."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(
        self, _request: pb.ServerReadyRequest, _: Call | None = None
    ) -> pb.ServerReadyResponse:
        """Report whether the server takes requests."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def model_ready(
        self, request: pb.ModelReadyRequest, _: Call | None = None
    ) -> pb.ModelReadyResponse:
        """Report whether a model takes requests. An unknown model is an error."""
        try:
            if self._repository.needs_load(request.name, request.version, field="name"):
                return pb.ModelReadyResponse(ready=True)
            self._repository.get(request.name, request.version, field="name")
        except (LoadingError, NotReadyError):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def server_metadata(
        self, _request: pb.ServerMetadataRequest, _: Call | None = None
    ) -> pb.ServerMetadataResponse:
        """Return the server's name and extensions."""
        return description.server_metadata()

    async def model_metadata(
        self, request: pb.ModelMetadataRequest, _: Call | None = None
    ) -> pb.ModelMetadataResponse:
        """Describe a model's tensors."""
        model = await self._model(request.name, request.version)
        versions = self._serving(model.bundle.manifest.name, "")
        return description.model_metadata(model, [version for _, version in versions])

    async def model_config(
        self, request: pb.ModelConfigRequest, _: Call | None = None
    ) -> pb.ModelConfigResponse:
        """Describe how a model runs."""
        model = await self._model(request.name, request.version)
        return description.model_config(model, max_images=self._max_images)

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest, _: Call | None = None
    ) -> pb.ModelStatisticsResponse:
        """Return the statistics of the versions that serve."""
        wanted = request.version
        if request.name:
            model = await self._model(request.name, wanted)
            # A label or a number means one version; empty means all.
            wanted = wanted and str(model.bundle.manifest.version)
        return pb.ModelStatisticsResponse(
            model_stats=[
                description.model_statistics(name, version, self._statistics.of(name, version))
                for name, version in self._serving(request.name, wanted)
            ]
        )

    async def model_infer(
        self, message: pb.ModelInferRequest, call: Call | None = None
    ) -> pb.ModelInferResponse:
        """Run a model on the pictures of a request."""
        require_short(message.id, "id")
        inference = read_request(message, max_images=self._max_images)
        deadline = deadline_of(call)
        if inference.timeout is not None:
            own = time.monotonic() + inference.timeout.total_seconds()
            deadline = own if deadline is None else min(own, deadline)
        try:
            result = await self._engine.infer(inference.request, deadline=deadline)
        except InvalidRequestError as error:
            raise inference.locate(error) from error
        return write_response(inference, result, name=message.id)

    async def model_stream_infer(
        self, messages: AsyncIterable[pb.ModelInferRequest], call: Call | None = None
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        """Run a model on every request of a stream; the responses keep their order."""

        async def respond(message: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
            try:
                response = await self.model_infer(message, call)
            except Exception as error:  # noqa: BLE001 - unexpected ones are logged
                status = status_of(error)
                # The protocol has no field for the code, on which a client decides
                # whether to try again.
                return pb.ModelStreamInferResponse(
                    error_message=f"{Code.Name(status.code)}: {status.message}",
                    infer_response=pb.ModelInferResponse(
                        model_name=message.model_name[:MAX_ID_CHARACTERS],
                        model_version=message.model_version[:MAX_ID_CHARACTERS],
                        id=message.id[:MAX_ID_CHARACTERS],
                    ),
                )
            return pb.ModelStreamInferResponse(infer_response=response)

        async with aclosing(in_order(messages, respond, window=self._max_images)) as responses:
            async for response in responses:
                yield response

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, _: Call | None = None
    ) -> pb.RepositoryIndexResponse:
        """List the versions of every model."""
        _require_no_repository(request.repository_name)
        return description.repository_index(self._repository.models(), ready=request.ready)

    async def repository_model_load(
        self, request: pb.RepositoryModelLoadRequest, _: Call | None = None
    ) -> pb.RepositoryModelLoadResponse:
        """Load the newest version of a model, also where it serves already."""
        _require_no_repository(request.repository_name)
        _require_no_parameters(request.parameters)
        await self._admin.reload_model(ReloadModelRequest(name=request.model_name, version=LATEST))
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest, _: Call | None = None
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload every version of a model."""
        _require_no_repository(request.repository_name)
        _require_no_parameters(request.parameters, but=_UNLOAD_DEPENDENTS)
        await self._admin.unload_model(UnloadModelRequest(name=request.model_name))
        return pb.RepositoryModelUnloadResponse()

    async def _model(self, name: str, version: str) -> LoadedModel:
        return await self._repository.obtain(name, version, field="name")

    def _serving(self, name: str, version: str) -> list[tuple[str, str]]:
        return [
            (model.name, str(found.version))
            for model in self._repository.models()
            for found in model.versions
            if found.state.answers
            and name in ("", model.name)
            and version in ("", str(found.version))
        ]


def _require_no_repository(name: str) -> None:
    if name:
        raise InvalidRequestError(
            "REPOSITORY_UNKNOWN",
            f"no repository {quote(name)}: the only one has no name, so leave the field empty",
            field="repository_name",
            metadata={"repository": clip(name)},
        )


def _require_no_parameters(names: Iterable[str], *, but: str | None = None) -> None:
    for name in names:
        if name != but:
            raise InvalidRequestError(
                "PARAMETER_UNSUPPORTED",
                f"the parameter {quote(name)} is not supported: a bundle is loaded unchanged",
                field="parameters",
                metadata={"parameter": clip(name)},
            )
