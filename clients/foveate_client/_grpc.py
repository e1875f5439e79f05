"""The transports over gRPC, and what their channels have in common."""

# ruff: noqa: ASYNC109 - gRPC timeouts are deadlines, which travel to the server

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from foveate.status import TRAILER, ErrorStatus, StatusError
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
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub

_SERVICE = "foveate.v1.ClassifierService"

# The feature map of one early layer can take tens of MB, far above gRPC's 4 MB.
MAX_MESSAGE_BYTES = 256 * 2**20

# UNAVAILABLE alone says that trying again is both safe and likely to help; the
# stream is not retried, because answers already taken would come twice.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [
                {"service": _SERVICE, "method": method}
                for method in ("Classify", "GetModel", "ListModels")
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


def channel_options() -> list[tuple[str, Any]]:
    """Return the options of every channel."""
    return [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        # A call is kept for another attempt up to this size, and by default only up to 256 KiB:
        # smaller than most photographs.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # Finds a connection that a router dropped without a word, during a call.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.primary_user_agent", f"foveate-client/{version('foveate-client')}"),
    ]


class GrpcTransport:
    """Carries the calls of a Client to a server.

    `address` is HOST:PORT or any other gRPC target; calls go in turn to every
    address it resolves to. `stall_timeout` is the longest wait for the next
    answer of a stream, in seconds. Without `credentials` the connection is in
    the clear.
    """

    def __init__(
        self,
        address: str,
        *,
        stall_timeout: float,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=channel_options())
        else:
            self._channel = grpc.secure_channel(address, credentials, options=channel_options())
        self._stub = ClassifierServiceStub(self._channel)
        self._stall_timeout = stall_timeout

    def classify(self, request: ClassifyRequest, timeout: float) -> ClassifyResponse:
        """Classify one picture."""
        with _status_errors(timeout):
            return self._stub.Classify(request, timeout=timeout)

    def classify_stream(
        self, requests: Iterable[ClassifyStreamRequest]
    ) -> Generator[ClassifyStreamResponse, None, None]:
        """Classify a stream of pictures, answering in their order."""
        call = self._stub.ClassifyStream(iter(requests))
        watchdog = _Watchdog(self._stall_timeout, call.cancel)
        try:
            while True:
                with _status_errors(self._stall_timeout, late=lambda: watchdog.barked), watchdog:
                    response = next(call, None)
                if response is None:
                    return
                yield response
        finally:
            watchdog.stop()
            call.cancel()

    def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:
        """List one page of the models."""
        with _status_errors(timeout):
            return self._stub.ListModels(request, timeout=timeout)

    def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:
        """Describe one model."""
        with _status_errors(timeout):
            return self._stub.GetModel(request, timeout=timeout)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class AsyncGrpcTransport:
    """Carries the calls of an AsyncClient to a server; its arguments are GrpcTransport's."""

    def __init__(
        self,
        address: str,
        *,
        stall_timeout: float,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=channel_options())
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=channel_options())
        self._stub = ClassifierServiceStub(self._channel)
        self._stall_timeout = stall_timeout

    async def classify(self, request: ClassifyRequest, timeout: float) -> ClassifyResponse:
        """Classify one picture."""
        with _status_errors(timeout):
            return await self._stub.Classify(request, timeout=timeout)

    async def classify_stream(
        self, requests: AsyncIterable[ClassifyStreamRequest]
    ) -> AsyncGenerator[ClassifyStreamResponse, None]:
        """Classify a stream of pictures, answering in their order."""
        call = self._stub.ClassifyStream(aiter(requests))
        try:
            while True:
                with _status_errors(self._stall_timeout):
                    try:
                        async with asyncio.timeout(self._stall_timeout):
                            response = await call.read()
                    except TimeoutError as error:
                        raise StatusError(_late(self._stall_timeout)) from error
                if not isinstance(response, ClassifyStreamResponse):  # grpc.aio.EOF
                    return
                yield response
        finally:
            call.cancel()

    async def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:
        """List one page of the models."""
        with _status_errors(timeout):
            return await self._stub.ListModels(request, timeout=timeout)

    async def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:
        """Describe one model."""
        with _status_errors(timeout):
            return await self._stub.GetModel(request, timeout=timeout)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class _Watchdog:
    """Calls `bark` when a `with` block takes longer than `timeout` seconds.

    One thread watches any number of blocks. It wakes once a timeout, because a
    block that starts while it sleeps cannot be late before it wakes.
    """

    def __init__(self, timeout: float, bark: Callable[[], object]) -> None:
        self.barked = False
        self._timeout = timeout
        self._bark = bark
        self._deadline = float("inf")
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="foveate-watchdog", daemon=True).start()

    def __enter__(self) -> None:
        self._deadline = time.monotonic() + self._timeout

    def __exit__(self, *_: object) -> None:
        self._deadline = float("inf")

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def _watch(self) -> None:
        wait = self._timeout
        while not self._stopped.wait(wait):
            left = self._deadline - time.monotonic()
            if left <= 0:
                self.barked = True
                self._bark()
                return
            wait = min(left, self._timeout)


@contextmanager
def _status_errors(timeout: float, late: Callable[[], bool] = lambda: False) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise StatusError(_late(timeout) if late() else _status_of(error, timeout)) from error


def _status_of(error: grpc.RpcError, timeout: float) -> ErrorStatus:
    # The stubs describe an entry as an object, which both kinds of metadata are not: pairs.
    details = dict(cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ())).get(
        TRAILER
    )
    if details is not None:
        with suppress(DecodeError):
            return ErrorStatus.from_status(Status.FromString(details))
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return _late(timeout)
    # gRPC's own failures, such as a refused connection, carry no details.
    return ErrorStatus(code=error.code().value[0], reason="", message=error.details() or "")


def _late(timeout: float) -> ErrorStatus:
    return ErrorStatus(
        code=grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
        reason="",
        message=f"no answer within {timeout:g} s",
    )
