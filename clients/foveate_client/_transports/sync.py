"""The transport of a Client over gRPC."""

import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing

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
from foveate_client._connection import Compression, Credentials, Retries
from foveate_client._throttle import Throttle, Throttling
from foveate_client._transports.channel import PLAINTEXT, Caller, open_channel
from foveate_client._transports.status import status_errors, throttled


class GrpcTransport:
    """Carries the calls of a Client to a server.

    `address` is HOST:PORT or any other gRPC target; calls go in turn to every
    address it resolves to. `stall_timeout` is the longest wait for the next
    answer of a stream, in seconds. Without `credentials` the connection is in
    the clear. `compression` is that of requests; with `throttling`, fewer pictures
    are sent to a server that refuses them. Raises ValueError where a token would be
    sent unencrypted to another machine, and OSError where a certificate's file cannot
    be read.
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
        self._channel = open_channel(self._caller, address, retries, compression)
        self._stub = ClassifierServiceStub(self._channel)
        self._throttle = None if throttling is None else Throttle(throttling)
        self._stall_timeout = stall_timeout

    def classify(self, request: ClassifyRequest, timeout: float) -> ClassifyResponse:
        """Classify one picture."""
        with status_errors(timeout), throttled(self._throttle):
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
                    with status_errors(self._stall_timeout, lambda: watchdog.expired), watchdog:
                        response = next(call, None)
                    if response is None:
                        return
                    yield response
        finally:
            call.cancel()

    def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:
        """List one page of the models."""
        with status_errors(timeout):
            return self._stub.ListModels(request, timeout=timeout, metadata=self._caller.headers())

    def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:
        """Describe one model."""
        with status_errors(timeout):
            return self._stub.GetModel(request, timeout=timeout, metadata=self._caller.headers())

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class _Watchdog:
    """Calls `on_expiry` when a `with` block takes longer than `timeout` seconds.

    One thread watches any number of blocks. It wakes once a timeout, because a
    block that starts while it sleeps cannot be late before it wakes.
    """

    def __init__(self, timeout: float, on_expiry: Callable[[], object]) -> None:
        self.expired = False
        self._timeout = timeout
        self._on_expiry = on_expiry
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
                self.expired = True
                self._on_expiry()
                return
            wait = min(left, self._timeout)
