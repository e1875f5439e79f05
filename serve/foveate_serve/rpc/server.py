"""The gRPC server: its services, gates and transport, its start and its drain."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as reflection

from foveate.inference import open_inference_pb2
from foveate.v1 import classifier_service_pb2, repository_service_pb2
from foveate_serve.access import AccessControl
from foveate_serve.engine.engine import Engine
from foveate_serve.observer import Changes
from foveate_serve.rpc.calls import Gate
from foveate_serve.rpc.handlers import ClassifierHandler, RepositoryHandler
from foveate_serve.rpc.health import HealthHandler
from foveate_serve.rpc.interceptor import CallInterceptor, CallObserver
from foveate_serve.rpc.methods import method_handlers
from foveate_serve.rpc.oip.handler import InferenceHandler
from foveate_serve.rpc.overload import OverloadGate
from foveate_serve.rpc.security import AccessGate
from foveate_serve.settings import Settings
from foveate_serve.statistics import Statistics
from foveate_serve.transports.make import make_transport
from foveate_serve.transports.tls import tls_files

CLASSIFIER = classifier_service_pb2.DESCRIPTOR.services_by_name["ClassifierService"]
REPOSITORY = repository_service_pb2.DESCRIPTOR.services_by_name["RepositoryService"]
OPEN_INFERENCE = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH: Any = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION: Any = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
CHANNELZ = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"]


class AddressError(Exception):
    """The address cannot be listened on, for the reason that `cause` has."""

    def __init__(self, address: str, cause: OSError) -> None:
        # asyncio wraps the system's words in a sentence; a name that is not found has no errno.
        number = cause.errno or 0
        reason = os.strerror(number) if number > 0 else cause.strerror or str(cause)
        super().__init__(f"cannot listen on {address}: {reason}")


@dataclass(frozen=True, kw_only=True)
class Services:
    """What answers the calls of any protocol, with the gates before it and its observers."""

    classifier: ClassifierHandler
    inference: InferenceHandler
    gates: Sequence[Gate]
    observers: Sequence[CallObserver]


class _Reflection:
    """grpc.reflection.v1alpha of services, as a handler whose requests are bounded and end."""

    def __init__(self, names: Sequence[str]) -> None:
        servicer: Any = reflection.ReflectionServicer(names)
        self.server_reflection_info = servicer.ServerReflectionInfo


class Server:
    """The services of an engine on one address.

    `start` listens; the server reports NOT_SERVING until `ready`. `drain` finishes the
    calls in flight and stops, `abort` stops at once.

    Args:
        engine: answers the requests.
        settings: the server's settings.
        changes: an observer of the engine, which wakes the health watches.
        statistics: an observer of the engine, for the Open Inference Protocol.
        repository: loads and unloads models for clients.
        access: checks the tokens of calls; None admits every call.
        observers: are notified of every call.
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
        self.health = HealthHandler(
            engine.repository.models,
            changes,
            services=[service.full_name for service in (CLASSIFIER, REPOSITORY, OPEN_INFERENCE)],
            model_service=CLASSIFIER.full_name,
            hung=lambda: engine.repository.hung,
            has_served=lambda: engine.repository.has_served,
        )
        self.services = Services(
            classifier=ClassifierHandler(engine, stream_window=settings.stream_window),
            inference=InferenceHandler(
                engine,
                statistics,
                repository,
                ready=lambda: self.is_ready,
                max_images=settings.stream_window,
            ),
            gates=(
                *(() if access is None else (AccessGate(access),)),
                OverloadGate(engine),
            ),
            observers=tuple(observers),
        )
        interceptor = CallInterceptor(
            self.services.gates, self.services.observers, log=settings.log_requests
        )
        self._transport = make_transport(settings, (interceptor,))
        handlers: dict[ServiceDescriptor, object] = {
            CLASSIFIER: self.services.classifier,
            REPOSITORY: repository,
            OPEN_INFERENCE: self.services.inference,
            HEALTH: self.health,
        }
        described = [*handlers, REFLECTION]
        if settings.channelz:
            self._transport.add_channelz()
            described.append(CHANNELZ)
        handlers[REFLECTION] = _Reflection([service.full_name for service in described])
        self._transport.add_generic_rpc_handlers(
            method_handlers(service, handler, stopping=self._stopping)
            for service, handler in handlers.items()
        )

    async def start(self) -> str:
        """Listen, and return the address with the port that was bound.

        Raises AddressError where it cannot be listened on, and SettingsError
        where the files of TLS cannot be read.
        """
        address, tls = self._settings.address, tls_files(self._settings)
        try:
            # Only workers share a port: a second server on it must fail.
            port = await self._transport.listen(
                address, tls=tls, share_port=self._settings.workers > 1
            )
        except OSError as error:
            raise AddressError(address, error) from error
        return f"{address.rpartition(':')[0]}:{port}"

    @property
    def is_ready(self) -> bool:
        """Whether the server reports SERVING."""
        return self.health.ready

    def ready(self) -> None:
        """Report SERVING."""
        self.health.ready = True

    async def drain(self) -> None:
        """Report NOT_SERVING, serve on for `shutdown_delay`, then finish what is in flight."""
        self.health.ready = False
        await asyncio.sleep(self._settings.shutdown_delay)
        # GOAWAY first: a client whose stream ends would otherwise open the next one here.
        await self._transport.go_away()
        self._end_streams()
        await self._transport.finish(self._settings.shutdown_timeout)

    async def abort(self) -> None:
        """Stop at once; calls in flight are aborted."""
        self._end_streams()
        await self._transport.stop()

    def _end_streams(self) -> None:
        """End the streams and watches, which would otherwise last as long as their clients."""
        self._stopping.set()
        self.health.end_watches()
