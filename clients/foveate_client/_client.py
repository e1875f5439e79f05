"""The synchronous client."""

# ruff: noqa: PLC0415 - gRPC is imported by the first client that needs it

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Self, Unpack

from foveate.status import StatusError
from foveate.v1.classifier_service_pb2 import (
    ClassifyStreamRequest,
    ClassifyStreamResponse,
    GetModelRequest,
    ListModelsRequest,
)
from foveate_client._connection import ClientOptions
from foveate_client._exceptions import CallError, FoveateError, client_errors
from foveate_client._fork import OfOneProcess
from foveate_client._images import ImageInput
from foveate_client._models import Model, ModelSummary
from foveate_client._options import ClassifyOptions, classify_request
from foveate_client._results import Classification
from foveate_client._stream import Window
from foveate_client._transports.base import Transport
from foveate_client._transports.local import local_transport

DEFAULT_TIMEOUT = 30.0
"""Seconds."""
DEFAULT_IN_FLIGHT = 16


class Client:
    """Classifies pictures on a server, or in this process.

        with Client("localhost:50051") as client:
            result = client.classify("cat.jpg", cam=Cam(top=3))

    `target` is the server's HOST:PORT, any other gRPC target, or a Transport.
    `timeout` is the default deadline of a call in seconds, and the longest
    wait for the next answer of `classify_many`. ClientOptions lists the other
    options of a connection to an address. Several threads may use a client at
    once, in the process that made it: a call after a fork raises ForkedError.
    Raises ValueError where a token would be sent unencrypted to another machine,
    and OSError where a certificate's file cannot be read.
    """

    def __init__(
        self,
        target: str | Transport,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **connection: Unpack[ClientOptions],
    ) -> None:
        if not isinstance(target, str) and connection:
            raise TypeError(f"{', '.join(connection)}: a transport has its own")
        self._timeout = timeout
        self._transport = OfOneProcess(
            _connect(target, timeout, connection) if isinstance(target, str) else target
        )

    @classmethod
    def local(
        cls,
        repository: str | os.PathLike[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        require_signature: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Return a client that runs the models of `repository`, a folder or a URL, in this process.

        `require_signature` is a file of public keys (PEM, Ed25519): bundles that none of
        them signed are refused. Raises MissingDistributionError where foveate-serve is not
        installed, and CallError where the keys cannot be read.
        """
        keys = None if require_signature is None else Path(require_signature)
        with client_errors():
            return cls(local_transport(repository, keys), timeout=timeout)

    def classify(
        self,
        image: ImageInput,
        *,
        timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> Classification:
        """Classify one picture; ClassifyOptions lists what else can be asked.

        `timeout` is in seconds. Raises ImageError where the picture cannot be
        read and CallError where the call fails.
        """
        request = classify_request(image, **options)
        with client_errors():
            response = self._transport.here.classify(request, self._deadline(timeout))
        return Classification.from_message(response)

    def classify_many(
        self,
        images: Iterable[ImageInput],
        *,
        in_flight: int = DEFAULT_IN_FLIGHT,
        **options: Unpack[ClassifyOptions],
    ) -> Generator[Classification | FoveateError, None, None]:
        """Classify pictures over one stream, and yield a result or an error for each, in order.

        At most `in_flight` pictures are held at once: the first result comes
        when that many have been sent or none is left, and each further picture
        is read when the oldest result has been taken. An error of one picture
        is yielded in its place, also where it is larger than a message may be;
        an error of the stream itself is raised.
        """
        window, source = Window(in_flight, options), iter(images)
        while True:
            try:
                yield from self._stream(window, source)
            except CallError as error:
                if not window.refuse(error):
                    raise
            else:
                return

    def _stream(
        self, window: Window, images: Iterator[ImageInput]
    ) -> Generator[Classification | FoveateError, None, None]:
        requests: SimpleQueue[ClassifyStreamRequest | None] = SimpleQueue()
        try:
            with closing(self._transport.here.classify_stream(iter(requests.get, None))) as answers:
                for _ in chain(window.left(), map(window.read, images)):
                    while window.full:
                        yield _take(window, answers)
                    if (request := window.send()) is not None:
                        requests.put(request)
                while window:
                    yield _take(window, answers)
                # The call ends without a cancellation; every answer has arrived.
                requests.put(None)
                with suppress(StatusError):
                    next(answers, None)
        finally:
            # Once the call has ended: gRPC's thread that waits for requests must not
            # half-close a call whose channel an interrupted caller closes meanwhile.
            requests.put(None)

    def models(self) -> Iterator[ModelSummary]:
        """Yield the models by name, fetching the server's pages as they are needed."""
        request = ListModelsRequest()
        while True:
            with client_errors():
                page = self._transport.here.list_models(request, self._timeout)
            yield from map(ModelSummary.from_message, page.models)
            if not page.next_page_token:
                return
            request = ListModelsRequest(page_token=page.next_page_token)

    def model(self, name: str = "", version: str = "", *, timeout: float | None = None) -> Model:
        """Return everything about one model; unnamed, the server's only one."""
        request = GetModelRequest(name=name, version=version)
        with client_errors():
            response = self._transport.here.get_model(request, self._deadline(timeout))
        return Model.from_message(response.model)

    def close(self) -> None:
        """Close the connection, or release the models of this process. After a fork, do nothing."""
        if self._transport.is_here:
            self._transport.here.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _deadline(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout


def _take(
    window: Window, answers: Iterator[ClassifyStreamResponse]
) -> Classification | FoveateError:
    with client_errors():
        return window.take(next(answers, None) if window.waits else None)


def _connect(address: str, timeout: float, connection: ClientOptions) -> Transport:
    from foveate_client._transports.sync import GrpcTransport

    return GrpcTransport(address, stall_timeout=timeout, **connection)
