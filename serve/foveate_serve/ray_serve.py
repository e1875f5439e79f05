"""ClassifierService on Ray Serve: an engine a replica, behind Ray's gRPC proxy.

A Serve config file names `application` and `add_classifier_service` (deploy/ray). Ray starts
the replicas, picks one for each call, and changes their number.
"""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from ray import serve

from foveate.v1.classifier_service_pb2 import (
    DESCRIPTOR,
    ClassifyRequest,
    ClassifyResponse,
    ClassifyStreamRequest,
    ClassifyStreamResponse,
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
)
from foveate_serve.assembly import make_engine
from foveate_serve.repository.remote import local_folder
from foveate_serve.rpc.bounds import bounded
from foveate_serve.rpc.calls import GRPC_CODES, trailers_of
from foveate_serve.rpc.errors import status_of
from foveate_serve.rpc.handlers import ClassifierHandler
from foveate_serve.settings import ModelSettings, Settings, SettingsError, load_settings
from foveate_serve.transports.base import make_handler

M = TypeVar("M", bound=Message)

SETTINGS = frozenset(
    {
        *ModelSettings.model_fields,
        *("repository", "require_signature", "version_labels", "models"),
        *("image_threads", "max_image_bytes", "max_image_pixels", "stream_window"),
        *("max_cam_classes", "max_picture_side", "max_feature_bytes"),
        *("engine_timeout", "load_timeout", "max_model_bytes", "max_requests"),
        *("max_request_bytes", "cache_bytes", "deduplicate"),
    }
)
"""The settings of `foveate serve` that a replica has; the others are of its listeners."""

_SERVICE = DESCRIPTOR.services_by_name["ClassifierService"]


def add_classifier_service(_: object, server: grpc.aio.Server) -> None:
    """Register the service's methods with Ray's proxy, which replaces what answers them.

    The proxy passes the bytes of a request on: the replica parses them, within its bounds.
    """
    handlers = {
        method.name: make_handler(
            None,
            streaming=(method.client_streaming, method.server_streaming),
            read=None,
            write=None,
        )
        for method in _SERVICE.methods
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers),)
    )


class Classifier:
    """A replica. Its methods have the service's names, by which Ray's proxy calls them.

    A request is a message's bytes. Raises OSError where the repository cannot be read, and
    `foveate_runtime.remote.store.RemoteError` where its URL cannot.
    """

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc] # Ray awaits it
        with local_folder(settings.repository, settings.version_labels) as folder:
            engine = make_engine(settings.model_copy(update={"repository": folder}))
        await engine.repository.open()
        self._handler = ClassifierHandler(engine, stream_window=settings.stream_window)

    async def Classify(self, request: bytes, grpc_context: Any) -> ClassifyResponse:  # noqa: N802
        """Classify one picture."""
        return await _answer(
            lambda: self._handler.classify(_CLASSIFY(request)), grpc_context, ClassifyResponse()
        )

    async def ClassifyStream(  # noqa: N802
        self, requests: AsyncIterable[bytes], grpc_context: Any
    ) -> AsyncIterator[ClassifyStreamResponse]:
        """Classify pictures as they arrive; the error of a picture is in its response."""
        parsed = (_CLASSIFY_STREAM(request) async for request in requests)
        try:
            async with aclosing(self._handler.classify_stream(parsed)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            _set_status(grpc_context, error)
            raise

    async def ListModels(self, request: bytes, grpc_context: Any) -> ListModelsResponse:  # noqa: N802
        """List the models."""
        return await _answer(
            lambda: self._handler.list_models(_LIST_MODELS(request)),
            grpc_context,
            ListModelsResponse(),
        )

    async def GetModel(self, request: bytes, grpc_context: Any) -> GetModelResponse:  # noqa: N802
        """Describe one version of one model."""
        return await _answer(
            lambda: self._handler.get_model(_GET_MODEL(request)), grpc_context, GetModelResponse()
        )


def application(arguments: Mapping[str, Any]) -> Any:
    """Return the application: `Classifier` with these settings. Raises SettingsError."""
    for name in arguments:
        if name not in SETTINGS:
            raise SettingsError(f"{name}: a replica of Ray Serve has no such setting")
    return serve.deployment(Classifier).bind(load_settings(arguments))


async def _answer(call: Callable[[], Awaitable[M]], context: Any, empty: M) -> M:
    try:
        return await call()
    except Exception as error:  # noqa: BLE001 - unexpected ones are logged
        # Of an exception Ray's proxy passes the code and the message on, and no details. gRPC
        # sends no response where a code says that the call failed.
        _set_status(context, error)
        return empty


def _set_status(context: Any, error: Exception) -> None:
    status = status_of(error)
    context.set_code(GRPC_CODES[status.code])
    context.set_details(status.message)
    context.set_trailing_metadata(list(trailers_of(status)))


_CLASSIFY = bounded(ClassifyRequest)
_CLASSIFY_STREAM = bounded(ClassifyStreamRequest)
_LIST_MODELS = bounded(ListModelsRequest)
_GET_MODEL = bounded(GetModelRequest)
