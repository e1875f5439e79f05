"""The transports over gRPC, and what their channels have in common."""

# ruff: noqa: ASYNC109 - gRPC timeouts are deadlines, which travel to the server

import asyncio
import json
import re
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from foveate.status import PUSHBACK_KEY, TRAILER, ErrorStatus, StatusError
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
from foveate.v1.model_pb2 import ModelSummary
from foveate.v1.repository_service_pb2_grpc import RepositoryServiceStub
from foveate_client._connection import Compression, Credentials, Retries, pem
from foveate_client._exceptions import too_large
from foveate_client._images import MAX_FILE_BYTES
from foveate_client._throttle import Throttle, Throttling
from foveate_client._tracing import trace_headers

_SERVICE = "foveate.v1.ClassifierService"

# The feature map of one early layer can take tens of MB, far above gRPC's 4 MB.
MAX_MESSAGE_BYTES = MAX_FILE_BYTES

PLAINTEXT = Credentials(tls=False)

HELD_BACK = ErrorStatus(
    code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
    reason="HELD_BACK",
    message="not sent: the server refuses most calls, and this client holds back",
)

_COMPRESSION = {
    None: grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}


_LARGER = re.compile(r"message larger than max \((?P<size>.+) vs\. (?P<limit>[0-9]+)\)")
"""What gRPC says of a message above the limit of whoever receives or sends it."""


def model_headers(model: str) -> dict[str, str]:
    """Return the header by which a server that is full refuses a call before it has read it."""
    # What a header cannot hold is no model's name either, as the server will say.
    return {"x-model": model} if model and model.isascii() and model.isprintable() else {}


class Caller:
    """Who calls: opens what a channel needs, and names the headers of each call."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def prepare(
        self, address: str, retries: Retries
    ) -> tuple[grpc.ChannelCredentials | None, list[tuple[str, Any]]]:
        """Return the credentials and options of a channel to `address`."""
        self._credentials.check(address)
        options = _channel_options(retries)
        if not self._credentials.tls:
            if self._credentials.token is not None:
                # What is meant for this machine must not leave it by way of a proxy.
                options.append(("grpc.enable_http_proxy", 0))
            return None, options
        if self._credentials.server_name:
            options.append(("grpc.ssl_target_name_override", self._credentials.server_name))
        tls = grpc.ssl_channel_credentials(
            root_certificates=pem(self._credentials.ca),
            private_key=pem(self._credentials.key),
            certificate_chain=pem(self._credentials.cert),
        )
        return tls, options

    def headers(self, model: str = "") -> tuple[tuple[str, str], ...]:
        """Return the headers of one call: its trace, its token and the model it asks for."""
        headers = {**trace_headers(), **model_headers(model)}
        authorization = self._credentials.authorization()
        if authorization is not None:
            headers["authorization"] = authorization
        return tuple(headers.items())


def _channel_options(retries: Retries) -> list[tuple[str, Any]]:
    return [
        ("grpc.service_config", json.dumps(_service_config(retries))),
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


def _service_config(retries: Retries) -> dict[str, Any]:
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries.attempts > 1:
        # UNAVAILABLE alone says that trying again is both safe and likely to help; the
        # stream is not retried, because answers already taken would come twice.
        config["methodConfig"] = [
            {
                "name": [
                    {"service": _SERVICE, "method": method}
                    for method in ("Classify", "GetModel", "ListModels")
                ],
                "retryPolicy": {
                    "maxAttempts": retries.attempts,
                    "initialBackoff": f"{retries.initial_pause:.9f}s",
                    "maxBackoff": f"{retries.max_pause:.9f}s",
                    "backoffMultiplier": retries.multiplier,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    return config


def _open_channel(
    caller: Caller, address: str, retries: Retries | None, compression: Compression | None
) -> grpc.Channel:
    tls, options = caller.prepare(address, retries or Retries())
    chosen = _COMPRESSION[compression]
    if tls is None:
        return grpc.insecure_channel(address, options, chosen)
    return grpc.secure_channel(address, tls, options, chosen)


class GrpcTransport:
    """Carries the calls of a Client to a server.

    `address` is HOST:PORT or any other gRPC target; calls go in turn to every
    address it resolves to. `stall_timeout` is the longest wait for the next
    answer of a stream, in seconds. Without `credentials` the connection is in
    the clear. `compression` is that of requests; with `throttling`, pictures are
    held back from a server that refuses them. Raises ValueError where a token
    would travel in the clear, and OSError where a certificate's file cannot be
    read.
    """

    def __init__(
        self,
        address: str,
        *,
        stall_timeout: float,
        credentials: Credentials | None = None,
        retries: Retries | None = None,
        compression: Compression | None = None,
        throttling: Throttling | None = None,
    ) -> None:
        self._caller = Caller(credentials or PLAINTEXT)
        self._channel = _open_channel(self._caller, address, retries, compression)
        self._stub = ClassifierServiceStub(self._channel)
        self._throttle = None if throttling is None else Throttle(throttling)
        self._stall_timeout = stall_timeout

    def classify(self, request: ClassifyRequest, timeout: float) -> ClassifyResponse:
        """Classify one picture."""
        with _status_errors(timeout), throttled(self._throttle):
            return self._stub.Classify(
                request, timeout=timeout, metadata=self._caller.headers(request.model)
            )

    def classify_stream(
        self, requests: Iterable[ClassifyStreamRequest]
    ) -> Generator[ClassifyStreamResponse, None, None]:
        """Classify a stream of pictures, answering in their order."""
        call = self._stub.ClassifyStream(iter(requests), metadata=self._caller.headers())
        try:
            with closing(_Watchdog(self._stall_timeout, call.cancel)) as watchdog:
                while True:
                    with _status_errors(self._stall_timeout, lambda: watchdog.barked), watchdog:
                        response = next(call, None)
                    if response is None:
                        return
                    yield response
        finally:
            call.cancel()

    def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:
        """List one page of the models."""
        with _status_errors(timeout):
            return self._stub.ListModels(request, timeout=timeout, metadata=self._caller.headers())

    def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:
        """Describe one model."""
        with _status_errors(timeout):
            return self._stub.GetModel(request, timeout=timeout, metadata=self._caller.headers())

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
        credentials: Credentials | None = None,
        retries: Retries | None = None,
        compression: Compression | None = None,
        throttling: Throttling | None = None,
    ) -> None:
        self._caller = Caller(credentials or PLAINTEXT)
        tls, options = self._caller.prepare(address, retries or Retries())
        chosen = _COMPRESSION[compression]
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options, chosen)
        else:
            self._channel = grpc.aio.secure_channel(address, tls, options, chosen)
        self._stub = ClassifierServiceStub(self._channel)
        self._throttle = None if throttling is None else Throttle(throttling)
        self._stall_timeout = stall_timeout

    async def classify(self, request: ClassifyRequest, timeout: float) -> ClassifyResponse:
        """Classify one picture."""
        with _status_errors(timeout), throttled(self._throttle):
            return await self._stub.Classify(
                request, timeout=timeout, metadata=self._caller.headers(request.model)
            )

    async def classify_stream(
        self, requests: AsyncIterable[ClassifyStreamRequest]
    ) -> AsyncGenerator[ClassifyStreamResponse, None]:
        """Classify a stream of pictures, answering in their order."""
        unanswered: deque[ClassifyStreamRequest] = deque()

        async def noted() -> AsyncGenerator[ClassifyStreamRequest, None]:
            async for request in requests:
                unanswered.append(request)
                yield request

        call = self._stub.ClassifyStream(noted(), metadata=self._caller.headers())
        try:
            while True:
                with _status_errors(self._stall_timeout):
                    try:
                        async with asyncio.timeout(self._stall_timeout):
                            response = await call.read()
                    except TimeoutError as error:
                        raise StatusError(_late(self._stall_timeout)) from error
                    except grpc.aio.AioRpcError as error:
                        if unanswered and _hides_its_status(error):
                            # Alone, what is too large is refused with the status that was lost.
                            largest = max(unanswered, key=ClassifyStreamRequest.ByteSize)
                            await self.classify(largest.request, self._stall_timeout)
                        raise
                if not isinstance(response, ClassifyStreamResponse):  # grpc.aio.EOF
                    return
                if unanswered:
                    unanswered.popleft()
                yield response
        finally:
            call.cancel()

    async def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:
        """List one page of the models."""
        with _status_errors(timeout):
            return await self._stub.ListModels(
                request, timeout=timeout, metadata=self._caller.headers()
            )

    async def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:
        """Describe one model."""
        with _status_errors(timeout):
            return await self._stub.GetModel(
                request, timeout=timeout, metadata=self._caller.headers()
            )

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class RepositoryTransport:
    """Carries the calls of a RepositoryClient; its arguments are GrpcTransport's."""

    def __init__(
        self,
        address: str,
        *,
        credentials: Credentials | None = None,
        retries: Retries | None = None,
        compression: Compression | None = None,
    ) -> None:
        self._caller = Caller(credentials or PLAINTEXT)
        self._channel = _open_channel(self._caller, address, retries, compression)
        self._stub = RepositoryServiceStub(self._channel)

    def change(self, method: str, request: Message, timeout: float) -> ModelSummary:
        """Call one of the service's methods, and return the model of its answer."""
        with _status_errors(timeout):
            response = getattr(self._stub, method)(
                request, timeout=timeout, metadata=self._caller.headers()
            )
        model: ModelSummary = response.model
        return model

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


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

    def close(self) -> None:
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
def throttled(throttle: Throttle | None) -> Iterator[None]:
    """Make one call where `throttle` admits it; raises StatusError where it is held back."""
    if throttle is None:
        yield
        return
    if not throttle.admits():
        raise StatusError(HELD_BACK)
    try:
        yield
    except grpc.RpcError as error:
        if not _is_refusal(error):
            throttle.accepted()
        raise
    throttle.accepted()


def _is_refusal(error: grpc.RpcError) -> bool:
    # gRPC answers RESOURCE_EXHAUSTED to a message that is too large as well.
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and PUSHBACK_KEY in _trailers(error)


def _trailers(error: grpc.RpcError) -> dict[str, bytes]:
    # The stubs describe an entry as an object, which both kinds of metadata are not: pairs.
    return dict(cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ()))


@contextmanager
def _status_errors(timeout: float, late: Callable[[], bool] = lambda: False) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise StatusError(_late(timeout) if late() else _status_of(error, timeout)) from error


def _hides_its_status(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether a message could not be sent: the server has ended the call, who knows why.

    grpc.aio takes its own failure for the status where it comes before the server's.
    """
    lost = "SendMessageOperation" in (error.debug_error_string() or "")
    return lost and error.code() is grpc.StatusCode.INTERNAL


def _status_of(error: grpc.RpcError, timeout: float) -> ErrorStatus:
    details = _trailers(error).get(TRAILER)
    if details is not None:
        with suppress(DecodeError):
            return ErrorStatus.from_status(Status.FromString(details))
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return _late(timeout)
    # gRPC's own failures, such as a refused connection, carry no details.
    text = error.details() or ""
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and (size := _LARGER.search(text)):
        return too_large(size["size"], int(size["limit"]))
    return ErrorStatus(code=error.code().value[0], reason="", message=text)


def _late(timeout: float) -> ErrorStatus:
    return ErrorStatus(
        code=grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
        reason="",
        message=f"no answer within {timeout:g} s",
    )
