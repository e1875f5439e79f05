"""The gRPC server: from an open port to the last answer."""

import asyncio
import logging

import grpc
from grpc_health.v1.health import OVERALL_HEALTH
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import enable_server_reflection

from foveate.v1 import classifier_service_pb2, repository_service_pb2
from foveate.v1.classifier_service_pb2_grpc import add_ClassifierServiceServicer_to_server
from foveate.v1.repository_service_pb2_grpc import add_RepositoryServiceServicer_to_server
from foveate_serve.engine import Engine
from foveate_serve.rpc.handlers import ClassifierHandler, RepositoryHandler
from foveate_serve.rpc.servicers import (
    CallsInFlight,
    ClassifierServicer,
    HealthServicer,
    RepositoryServicer,
)
from foveate_serve.settings import Settings

logger = logging.getLogger(__name__)

CLASSIFIER = classifier_service_pb2.DESCRIPTOR.services_by_name["ClassifierService"].full_name
REPOSITORY = repository_service_pb2.DESCRIPTOR.services_by_name["RepositoryService"].full_name

FLUSH_SECONDS = 1.0
"""What the last answers get to leave the server, after all calls are done."""


class AddressError(Exception):
    """The address cannot be listened on."""


class Server:
    """The services of an engine on one address.

    It listens from `start` on and reports NOT_SERVING until `ready`. `drain`
    stops it after what is in flight, `abort` at once.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._health = HealthServicer(self._stopping)
        self._calls = CallsInFlight(self._stopping)
        self._server = grpc.aio.server(
            interceptors=(self._calls,),
            options=(
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                # A second server on the same port must fail, not share it.
                ("grpc.so_reuseport", 0),
            ),
        )
        classifier = ClassifierHandler(engine, stream_window=settings.stream_window)
        repository = RepositoryHandler(engine.repository, enabled=settings.admin)
        add_ClassifierServiceServicer_to_server(
            ClassifierServicer(classifier, self._stopping), self._server
        )
        add_RepositoryServiceServicer_to_server(RepositoryServicer(repository), self._server)
        add_HealthServicer_to_server(self._health, self._server)
        enable_server_reflection((CLASSIFIER, REPOSITORY, HEALTH, REFLECTION), self._server)

    async def start(self) -> str:
        """Listen, and return the address with the port that was bound; raises AddressError."""
        address = self._settings.address
        await self._report(HealthCheckResponse.NOT_SERVING)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise AddressError(f"cannot listen on {address}") from error
        await self._server.start()
        return f"{address.rpartition(':')[0]}:{port}"

    async def ready(self) -> None:
        """Report SERVING."""
        await self._report(HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Report NOT_SERVING and go on for `shutdown_delay`, then finish what runs and stop."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._settings.shutdown_delay)
        self._stopping.set()
        await self._calls.finish(self._settings.shutdown_timeout)
        await self._server.stop(FLUSH_SECONDS)

    async def abort(self) -> None:
        """Stop at once; calls in flight are cancelled."""
        self._stopping.set()
        await self._server.stop(None)

    async def _report(self, status: int) -> None:
        for service in (OVERALL_HEALTH, CLASSIFIER, REPOSITORY):
            await self._health.set(service, status)
