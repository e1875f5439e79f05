"""The gRPC server: from an open port to the last answer."""

import asyncio
import logging
from collections.abc import Sequence

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import enable_server_reflection

from foveate.inference import open_inference_pb2
from foveate.inference.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from foveate.v1 import classifier_service_pb2, repository_service_pb2
from foveate.v1.classifier_service_pb2_grpc import add_ClassifierServiceServicer_to_server
from foveate.v1.repository_service_pb2_grpc import add_RepositoryServiceServicer_to_server
from foveate_serve.access import AccessControl
from foveate_serve.engine import Engine
from foveate_serve.observer import Changes
from foveate_serve.rpc.handlers import ClassifierHandler, RepositoryHandler
from foveate_serve.rpc.health import HealthServicer
from foveate_serve.rpc.interceptor import CallInterceptor, CallObserver
from foveate_serve.rpc.oip.handler import InferenceHandler
from foveate_serve.rpc.oip.servicer import InferenceServicer
from foveate_serve.rpc.overload import OverloadGate
from foveate_serve.rpc.security import AccessGate, server_credentials
from foveate_serve.rpc.servicers import CallsInFlight, ClassifierServicer, RepositoryServicer
from foveate_serve.settings import Settings
from foveate_serve.statistics import Statistics

logger = logging.getLogger(__name__)

CLASSIFIER = classifier_service_pb2.DESCRIPTOR.services_by_name["ClassifierService"].full_name
CHANNELZ = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name
REPOSITORY = repository_service_pb2.DESCRIPTOR.services_by_name["RepositoryService"].full_name
OPEN_INFERENCE = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

FLUSH_SECONDS = 1.0
"""What the last answers get to leave the server, after all calls are done."""


def _look_up_by_name(server: grpc.aio.Server) -> None:
    """Have a server look a call's handler up by the name of its method, for every service.

    For each method that is registered besides, grpc.aio keeps a task, and waits
    for all of them anew at every call: a tenth of what a small one costs.
    """
    server.add_registered_method_handlers = lambda *_: None  # type: ignore[method-assign]


class AddressError(Exception):
    """The address cannot be listened on."""


class Server:
    """The services of an engine on one address.

    It listens from `start` on and reports NOT_SERVING until `ready`. `drain`
    stops it after what is in flight, `abort` at once. The engine tells
    `changes` of its models' states and `statistics` of their requests;
    `repository` makes the changes of models that clients ask for. `access` None
    lets everyone in, and `observers` are told of every call.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        changes: Changes,
        statistics: Statistics,
        repository: RepositoryHandler,
        *,
        access: AccessControl | None = None,
        observers: Sequence[CallObserver] = (),
    ) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._health = HealthServicer(
            engine.repository.models,
            changes,
            services=(CLASSIFIER, REPOSITORY, OPEN_INFERENCE),
            model_service=CLASSIFIER,
            hung=lambda: engine.repository.hung,
        )
        self._calls = CallsInFlight(self._stopping)
        gates = (
            self._calls,
            *(() if access is None else (AccessGate(access),)),
            OverloadGate(engine.refusal),
        )
        self._server = grpc.aio.server(
            interceptors=(CallInterceptor(gates, observers, log=settings.log_requests),),
            options=(
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                # A second server on the same port must fail; workers share theirs.
                ("grpc.so_reuseport", int(settings.workers > 1)),
            ),
        )
        _look_up_by_name(self._server)
        classifier = ClassifierHandler(engine, stream_window=settings.stream_window)
        add_ClassifierServiceServicer_to_server(
            ClassifierServicer(classifier, self._stopping), self._server
        )
        add_RepositoryServiceServicer_to_server(RepositoryServicer(repository), self._server)
        inference = InferenceHandler(
            engine,
            statistics,
            repository,
            ready=lambda: self.is_ready,
            max_images=settings.stream_window,
        )
        add_GRPCInferenceServiceServicer_to_server(
            InferenceServicer(inference, self._stopping), self._server
        )
        add_HealthServicer_to_server(self._health, self._server)
        services = [CLASSIFIER, REPOSITORY, OPEN_INFERENCE, HEALTH, REFLECTION]
        if settings.channelz:
            channelz.add_channelz_servicer(self._server)
            services.append(CHANNELZ)
        enable_server_reflection(services, self._server)

    async def start(self) -> str:
        """Listen, and return the address with the port that was bound.

        Raises AddressError where it cannot be listened on, and SettingsError
        where the files of TLS cannot be read.
        """
        address, credentials = self._settings.address, server_credentials(self._settings)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise AddressError(f"cannot listen on {address}") from error
        await self._server.start()
        return f"{address.rpartition(':')[0]}:{port}"

    @property
    def is_ready(self) -> bool:
        """Whether the server reports SERVING."""
        return self._health.ready

    def ready(self) -> None:
        """Report SERVING."""
        self._health.ready = True

    async def drain(self) -> None:
        """Report NOT_SERVING and go on for `shutdown_delay`, then finish what runs and stop."""
        self._health.ready = False
        await asyncio.sleep(self._settings.shutdown_delay)
        self._stop_taking()
        await self._calls.finish(self._settings.shutdown_timeout)
        await self._server.stop(FLUSH_SECONDS)

    async def abort(self) -> None:
        """Stop at once; calls in flight are cancelled."""
        self._stop_taking()
        await self._server.stop(None)

    def _stop_taking(self) -> None:
        self._stopping.set()
        self._health.end_watches()
