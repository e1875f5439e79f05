"""The gRPC server: from an open port to the last answer."""

import asyncio
import logging
from collections.abc import Sequence

from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import aio as reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from foveate.inference import open_inference_pb2
from foveate.inference.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from foveate.v1 import classifier_service_pb2, repository_service_pb2
from foveate.v1.classifier_service_pb2_grpc import add_ClassifierServiceServicer_to_server
from foveate.v1.repository_service_pb2_grpc import add_RepositoryServiceServicer_to_server
from foveate_serve.access import AccessControl
from foveate_serve.engine.engine import Engine
from foveate_serve.observer import Changes
from foveate_serve.rpc.handlers import ClassifierHandler, RepositoryHandler
from foveate_serve.rpc.health import HealthServicer
from foveate_serve.rpc.interceptor import CallInterceptor, CallObserver
from foveate_serve.rpc.oip.handler import InferenceHandler
from foveate_serve.rpc.oip.servicer import InferenceServicer
from foveate_serve.rpc.overload import OverloadGate
from foveate_serve.rpc.security import AccessGate
from foveate_serve.rpc.servicers import ClassifierServicer, RepositoryServicer
from foveate_serve.settings import Settings
from foveate_serve.statistics import Statistics
from foveate_serve.transports.base import services_of
from foveate_serve.transports.make import make_transport
from foveate_serve.transports.tls import tls_files

logger = logging.getLogger(__name__)

CLASSIFIER = classifier_service_pb2.DESCRIPTOR.services_by_name["ClassifierService"].full_name
CHANNELZ = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name
REPOSITORY = repository_service_pb2.DESCRIPTOR.services_by_name["RepositoryService"].full_name
OPEN_INFERENCE = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


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
        gates = (
            *(() if access is None else (AccessGate(access),)),
            OverloadGate(engine.check_load),
        )
        self._transport = make_transport(
            settings, (CallInterceptor(gates, observers, log=settings.log_requests),)
        )
        services = services_of(self._transport)
        classifier = ClassifierHandler(engine, stream_window=settings.stream_window)
        add_ClassifierServiceServicer_to_server(
            ClassifierServicer(classifier, self._stopping), services
        )
        add_RepositoryServiceServicer_to_server(RepositoryServicer(repository), services)
        inference = InferenceHandler(
            engine,
            statistics,
            repository,
            ready=lambda: self.is_ready,
            max_images=settings.stream_window,
        )
        add_GRPCInferenceServiceServicer_to_server(
            InferenceServicer(inference, self._stopping), services
        )
        add_HealthServicer_to_server(self._health, services)
        names = [CLASSIFIER, REPOSITORY, OPEN_INFERENCE, HEALTH, REFLECTION]
        if settings.channelz:
            self._transport.add_channelz()
            names.append(CHANNELZ)
        add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
            reflection.ReflectionServicer(names), services
        )

    async def start(self) -> str:
        """Listen, and return the address with the port that was bound.

        Raises AddressError where it cannot be listened on, and SettingsError
        where the files of TLS cannot be read.
        """
        address, tls = self._settings.address, tls_files(self._settings)
        try:
            # A second server on the same port must fail; workers share theirs.
            port = await self._transport.listen(
                address, tls=tls, share_port=self._settings.workers > 1
            )
        except OSError as error:
            raise AddressError(f"cannot listen on {address}") from error
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
        # First, or the clients of streams that end would come again at once.
        await self._transport.go_away()
        self._end_streams()
        await self._transport.finish(self._settings.shutdown_timeout)

    async def abort(self) -> None:
        """Stop at once; calls in flight are cut off."""
        self._end_streams()
        await self._transport.stop()

    def _end_streams(self) -> None:
        """End what would go on for as long as its client does."""
        self._stopping.set()
        self._health.end_watches()
