"""The client for asyncio."""

# ruff: noqa: ASYNC109 - a gRPC timeout is a deadline, which the server gets as well
# ruff: noqa: PLC0415 - gRPC is imported by the first client that needs it

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Self, Unpack

from foveate.status import StatusError
from foveate.v1.classifier_service_pb2 import (
    ClassifyStreamRequest,
    ClassifyStreamResponse,
    GetModelRequest,
    ListModelsRequest,
)
from foveate_client._client import DEFAULT_IN_FLIGHT, DEFAULT_TIMEOUT
from foveate_client._connection import ClientOptions
from foveate_client._exceptions import CallError, FoveateError, client_errors
from foveate_client._fork import OfOneProcess
from foveate_client._images import ImageInput
from foveate_client._models import Model, ModelSummary
from foveate_client._options import ClassifyOptions, classify_request
from foveate_client._results import Classification
from foveate_client._stream import Window
from foveate_client._transports.base import AsyncTransport
from foveate_client._transports.local import local_transport
from foveate_client._transports.threaded import ThreadedTransport


class AsyncClient:
    """Classifies pictures on a server, from asyncio.

        async with AsyncClient("localhost:50051") as client:
            result = await client.classify("cat.jpg", cam=Cam(top=3))

    `target` is the server's HOST:PORT, any other gRPC target, or an
    AsyncTransport. `timeout` is the default deadline of a call in
    seconds, and the longest wait for the next answer of `classify_many`. ClientOptions
    lists the other options of a connection to an address. A client belongs to the event
    loop that it was made in; a call after a fork raises ForkedError. Raises ValueError
    where a token would be sent unencrypted to another machine, and OSError where a
    certificate's file cannot be read.
    """

    def __init__(
        self,
        target: str | AsyncTransport,
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

        `require_signature` is as in `Client.local`. Opening it reads the models, and blocks
        until they are loaded. Raises MissingDistributionError where foveate-serve is not
        installed, and CallError where the keys cannot be read.
        """
        keys = None if require_signature is None else Path(require_signature)
        with client_errors():
            transport = ThreadedTransport(local_transport(repository, keys))
            return cls(transport, timeout=timeout)

    async def classify(
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
        request = await asyncio.to_thread(classify_request, image, **options)
        with client_errors():
            response = await self._transport.here.classify(request, self._deadline(timeout))
        return Classification.from_message(response)

    async def classify_many(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        in_flight: int = DEFAULT_IN_FLIGHT,
        **options: Unpack[ClassifyOptions],
    ) -> AsyncGenerator[Classification | FoveateError, None]:
        """Classify pictures over one stream, and yield a result or an error for each, in order.

        At most `in_flight` pictures are held at once: the first result comes
        when that many have been sent or none is left, and each further picture
        is read when the oldest result has been taken. An error of one picture
        is yielded in its place, also where it is larger than a message may be;
        an error of the stream itself is raised.
        """
        window, source = Window(in_flight, options), _each(images)
        while True:
            try:
                async with aclosing(self._stream(window, source)) as results:
                    async for result in results:
                        yield result
            except CallError as error:
                if not window.refuse(error):
                    raise
            else:
                return

    async def _stream(
        self, window: Window, images: AsyncIterator[ImageInput]
    ) -> AsyncGenerator[Classification | FoveateError, None]:
        requests: asyncio.Queue[ClassifyStreamRequest | None] = asyncio.Queue()
        async with aclosing(self._transport.here.classify_stream(_until_none(requests))) as answers:
            try:
                async for _ in _read(window, images):
                    while window.full:
                        yield await _take(window, answers)
                    if (request := await asyncio.to_thread(window.send)) is not None:
                        requests.put_nowait(request)
                while window:
                    yield await _take(window, answers)
                # The call ends without a cancellation; every answer has arrived.
                requests.put_nowait(None)
                with suppress(StatusError):
                    await anext(answers, None)
            finally:
                requests.put_nowait(None)

    async def models(self) -> AsyncIterator[ModelSummary]:
        """Yield the models by name, fetching the server's pages as they are needed."""
        request = ListModelsRequest()
        while True:
            with client_errors():
                page = await self._transport.here.list_models(request, self._timeout)
            for model in page.models:
                yield ModelSummary.from_message(model)
            if not page.next_page_token:
                return
            request = ListModelsRequest(page_token=page.next_page_token)

    async def model(
        self,
        name: str = "",
        version: str = "",
        *,
        timeout: float | None = None,
    ) -> Model:
        """Return everything about one model; unnamed, the server's only one."""
        request = GetModelRequest(name=name, version=version)
        with client_errors():
            response = await self._transport.here.get_model(request, self._deadline(timeout))
        return Model.from_message(response.model)

    async def close(self) -> None:
        """Close the connection. After a fork, do nothing."""
        if self._transport.is_here:
            await self._transport.here.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _deadline(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout


async def _take(
    window: Window, answers: AsyncIterator[ClassifyStreamResponse]
) -> Classification | FoveateError:
    with client_errors():
        return window.take(await anext(answers, None) if window.waits else None)


async def _read(window: Window, images: AsyncIterator[ImageInput]) -> AsyncIterator[None]:
    """Step through the pictures to send: those that were read before, then the others."""
    for step in window.left():
        yield step
    async for image in images:
        window.read(image)
        yield


async def _each(
    images: Iterable[ImageInput] | AsyncIterable[ImageInput],
) -> AsyncIterator[ImageInput]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


async def _until_none(
    requests: asyncio.Queue[ClassifyStreamRequest | None],
) -> AsyncIterator[ClassifyStreamRequest]:
    while (request := await requests.get()) is not None:
        yield request


def _connect(address: str, timeout: float, connection: ClientOptions) -> AsyncTransport:
    from foveate_client._transports.aio import AsyncGrpcTransport

    return AsyncGrpcTransport(address, stall_timeout=timeout, **connection)
