"""Calls between workers: each serves its peers on a socket in the supervisor's folder."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from foveate.status import TRAILER, ErrorStatus, StatusError
from foveate.v1.classifier_service_pb2 import GetModelRequest, ListModelsRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate.v1.model_pb2 import (
    MODEL_STATE_ON_DEMAND,
    MODEL_STATE_READY,
    ModelState,
    ModelSummary,
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
from foveate.v1.repository_service_pb2_grpc import RepositoryServiceStub
from foveate_serve.engine.engine import Engine
from foveate_serve.observe.pages import VersionRow
from foveate_serve.observe.source import describe_batching
from foveate_serve.repository.repository import Repository
from foveate_serve.repository.versions import State
from foveate_serve.rpc.calls import Call
from foveate_serve.rpc.convert import MAX_PAGE_SIZE
from foveate_serve.rpc.handlers import ClassifierHandler, RepositoryHandler
from foveate_serve.rpc.health import HealthHandler
from foveate_serve.rpc.interceptor import CallInterceptor
from foveate_serve.rpc.methods import method_handlers
from foveate_serve.rpc.server import CLASSIFIER, HEALTH, REPOSITORY
from foveate_serve.settings import TransportName, TransportSettings
from foveate_serve.transports.make import make_transport

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 10.0
"""The timeout of a peer for listing its models."""

_PROBE_SECONDS = 1.0
"""The time in which a probe must be answered: the default of Kubernetes."""

FIGURES = "figures"
"""The folder, in the supervisor's, in which the workers count."""

_NO_WORKER = ErrorStatus(
    code=Code.UNAVAILABLE, reason="NO_WORKER", message="no worker could make the change"
)


class Peers:
    """The workers, by their sockets in `folder`, which only this user may read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def socket(self, index: int) -> Path:
        """Return the socket of one worker."""
        return self._folder / f"{index}.sock"

    def others(self, index: int) -> list[Path]:
        """Return the sockets of the workers that serve, without one's own."""
        return [path for path in self.all() if path != self.socket(index)]

    def all(self) -> list[Path]:
        """Return the sockets of the workers that serve, always in the same order."""
        return sorted(self._folder.glob("*.sock"), key=lambda path: int(path.stem))


@asynccontextmanager
async def connected(socket: Path) -> AsyncIterator[grpc.aio.Channel]:
    """Connect to one worker."""
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        yield channel


async def rows_of(socket: Path) -> list[VersionRow]:
    """Return the status page's rows of the models of one worker; raises AioRpcError."""
    rows = []
    async with connected(socket) as channel:
        stub = ClassifierServiceStub(channel)
        for model in await _models(channel):
            for version in model.versions:
                runner = batching = ""
                if version.state == MODEL_STATE_READY:
                    wanted = GetModelRequest(name=model.name, version=version.version)
                    details = (await stub.GetModel(wanted, timeout=TIMEOUT_SECONDS)).model
                    runner = f"{details.backend}, {details.device}, {details.active_variant}"
                    batching = describe_batching(details.batching)
                state = ModelState.Name(version.state).removeprefix("MODEL_STATE_").lower()
                rows.append(
                    VersionRow(
                        model=model.name,
                        version=int(version.version),
                        state=State(state),
                        reason=version.reason,
                        default=version.version == model.default_version,
                        runner=runner,
                        batching=batching,
                    )
                )
    return rows


@dataclass(frozen=True, kw_only=True)
class Served:
    """The models and versions that a worker serves, and its labels by model."""

    versions: frozenset[tuple[str, str]]
    labels: Mapping[str, Mapping[str, str]]


async def served_by(socket: Path) -> Served:
    """Return what one worker serves; raises AioRpcError."""
    async with connected(socket) as channel:
        models = await _models(channel)
    return Served(
        versions=frozenset(
            (model.name, version.version)
            for model in models
            for version in model.versions
            if version.state in (MODEL_STATE_READY, MODEL_STATE_ON_DEMAND)
        ),
        labels={model.name: dict(model.version_labels) for model in models},
    )


async def serves(socket: Path) -> bool:
    """Return whether one worker reports SERVING, False where it does not answer a probe in time."""
    with suppress(grpc.aio.AioRpcError):
        async with connected(socket) as channel:
            ask = HealthStub(channel).Check  # type: ignore[attr-defined]  # the types lack it
            answer = await ask(HealthCheckRequest(), timeout=_PROBE_SECONDS)
            return bool(answer.status == HealthCheckResponse.SERVING)
    return False


async def versions_of(socket: Path) -> list[tuple[str, str]]:
    """Return the models and versions of one worker; raises AioRpcError."""
    async with connected(socket) as channel:
        models = await _models(channel)
    return [(model.name, version.version) for model in models for version in model.versions]


async def _models(channel: grpc.aio.Channel) -> list[ModelSummary]:
    stub, request = ClassifierServiceStub(channel), ListModelsRequest(page_size=MAX_PAGE_SIZE)
    models: list[ModelSummary] = []
    while True:
        page = await stub.ListModels(request, timeout=TIMEOUT_SECONDS)
        models += page.models
        if not page.next_page_token:
            return models
        request.page_token = page.next_page_token


class PeerServer:
    """Serves a worker's peers: its health, its models, and their changes in this worker only."""

    def __init__(
        self, engine: Engine, socket: Path, *, health: HealthHandler, transport: TransportName
    ) -> None:
        self._socket = socket
        self._server = make_transport(TransportSettings(transport=transport), (CallInterceptor(),))
        models = ClassifierHandler(engine, stream_window=1)
        repository = RepositoryHandler(engine.repository, enabled=True)
        self._server.add_generic_rpc_handlers(
            method_handlers(service, handler)
            for service, handler in (
                (CLASSIFIER, models),
                (REPOSITORY, repository),
                (HEALTH, health),
            )
        )

    async def start(self) -> None:
        """Listen."""
        await self._server.listen_unix(self._socket)

    async def stop(self) -> None:
        """Stop at once."""
        self._socket.unlink(missing_ok=True)
        await self._server.stop()


class SharedRepositoryHandler(RepositoryHandler):
    """RepositoryService for all workers, which make a change one after another.

    The first worker that fails ends the change, and its error is the response; the
    workers before it have then made the change. A worker that is down is left out: it
    copies the state of a peer when it starts.
    """

    def __init__(
        self, repository: Repository, peers: Peers, *, enabled: bool, polled: bool
    ) -> None:
        super().__init__(repository, enabled=enabled, polled=polled)
        self._peers = peers

    async def load_model(
        self, request: LoadModelRequest, _: Call | None = None
    ) -> LoadModelResponse:
        """Load a model in every worker."""
        response: LoadModelResponse = await self._change_all("LoadModel", request)
        return response

    async def unload_model(
        self, request: UnloadModelRequest, _: Call | None = None
    ) -> UnloadModelResponse:
        """Unload a model in every worker."""
        response: UnloadModelResponse = await self._change_all("UnloadModel", request)
        return response

    async def reload_model(
        self, request: ReloadModelRequest, _: Call | None = None
    ) -> ReloadModelResponse:
        """Load a model again in every worker."""
        response: ReloadModelResponse = await self._change_all("ReloadModel", request)
        return response

    async def set_version_labels(
        self, request: SetVersionLabelsRequest, _: Call | None = None
    ) -> SetVersionLabelsResponse:
        """Replace a model's labels in every worker."""
        self._require_enabled()
        response: SetVersionLabelsResponse = await self._call_all("SetVersionLabels", request)
        return response

    async def _change_all(self, method: str, request: Message) -> Any:
        self._require_changes()
        return await self._call_all(method, request)

    async def _call_all(self, method: str, request: Message) -> Any:
        response = None
        for socket in self._peers.all():
            async with connected(socket) as channel:
                try:
                    response = await getattr(RepositoryServiceStub(channel), method)(request)
                except grpc.aio.AioRpcError as error:
                    details = dict(error.trailing_metadata() or ()).get(TRAILER)
                    if isinstance(details, bytes):
                        status = ErrorStatus.from_status(Status.FromString(details))
                        raise StatusError(status) from error
                    logger.warning("worker %s did not answer: %s", socket.stem, error.code().name)
        if response is None:
            raise StatusError(_NO_WORKER)
        return response
