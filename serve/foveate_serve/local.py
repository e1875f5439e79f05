"""The services in the caller's own process, without a server."""

import asyncio
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import aclosing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self, TypeVar

from grpc import StatusCode

from foveate.status import ErrorStatus, StatusError
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
from foveate_runtime.remote.location import LocationError
from foveate_runtime.remote.store import RemoteError
from foveate_serve.assembly import make_engine
from foveate_serve.errors import InvalidRequestError
from foveate_serve.repository.remote import local_folder
from foveate_serve.rpc.calls import TimedCall
from foveate_serve.rpc.errors import status_of
from foveate_serve.rpc.handlers import ClassifierHandler
from foveate_serve.settings import Settings, SettingsError

T = TypeVar("T")


class LocalTransport:
    """ClassifierService over the bundles of `repository`, on an event loop of its own thread.

    A repository at a URL is fetched once, the newest version of each model. Calls
    take a timeout in seconds and raise `foveate.status.StatusError`; they may come
    from several threads. `require_signature` is a file of public keys: bundles that none
    of them signed are refused. Opening raises OSError where the folder cannot be read, and
    StatusError where the URL or the keys cannot; a model that cannot be loaded is listed
    as failed.
    """

    def __init__(self, repository: Path | str, require_signature: Path | None = None) -> None:
        with _remote_errors(), local_folder(repository, {}) as folder:
            settings = Settings(repository=folder)
        if require_signature is not None:
            settings = settings.model_copy(update={"require_signature": require_signature})
        try:
            engine = make_engine(settings)
        except SettingsError as error:
            bad = InvalidRequestError("KEYS_UNUSABLE", str(error), field="require_signature")
            raise StatusError(status_of(bad)) from error
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="foveate-local", daemon=True
        )
        self._thread.start()
        self._engine = engine
        self._window = settings.stream_window
        self._handler = ClassifierHandler(self._engine, stream_window=self._window)
        try:
            self._wait(self._engine.repository.open())
        except OSError:
            self.close()
            raise

    def classify(self, request: ClassifyRequest, timeout: float) -> ClassifyResponse:
        """Classify one picture."""
        return self._answer(self._handler.classify(request, TimedCall(timeout)))

    def classify_stream(
        self, requests: Iterable[ClassifyStreamRequest], timeout: float | None = None
    ) -> Generator[ClassifyStreamResponse, None, None]:
        """Classify pictures as they arrive; the responses keep their order.

        A picture that fails has an error in its response. `requests` is read on another
        thread. The timeout is that of the whole stream.
        """
        stream = _Stream(self._loop, window=self._window)
        responses = self._handler.classify_stream(stream.requests(), TimedCall(timeout))
        running = asyncio.run_coroutine_threadsafe(stream.collect(responses), self._loop)
        reader = threading.Thread(
            target=stream.read, args=(requests,), name="foveate-requests", daemon=True
        )
        reader.start()
        try:
            yield from stream.responses()
            running.result()
        finally:
            self._wait(stream.cancel())

    def list_models(self, request: ListModelsRequest, timeout: float) -> ListModelsResponse:  # noqa: ARG002 - answered from memory
        """List the models, by name."""
        return self._answer(self._handler.list_models(request))

    def get_model(self, request: GetModelRequest, timeout: float) -> GetModelResponse:  # noqa: ARG002 - answered from memory
        """Describe one version of one model."""
        return self._answer(self._handler.get_model(request))

    def close(self) -> None:
        """Finish the requests in flight and release the models."""
        if self._loop.is_closed():
            return
        self._wait(self._engine.close())
        # In its own thread: the caller's may run a loop already, as a notebook's does.
        self._wait(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return self._wait(call)
        except Exception as error:
            raise StatusError(status_of(error)) from error

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()


@contextmanager
def _remote_errors() -> Iterator[None]:
    try:
        yield
    except LocationError as error:
        raise _status_error(StatusCode.INVALID_ARGUMENT, "REPOSITORY_INVALID", error) from error
    except RemoteError as error:
        raise _status_error(StatusCode.UNAVAILABLE, "REPOSITORY_UNREADABLE", error) from error


def _status_error(code: StatusCode, reason: str, error: Exception) -> StatusError:
    number, _ = code.value
    return StatusError(ErrorStatus(code=number, reason=reason, message=str(error)))


class _Stream:
    """Passes requests to the event loop and responses back, at most `window` of them in flight.

    Each picture passes between threads twice: to the event loop, and back.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, window: int) -> None:
        self._loop = loop
        self._slots = threading.Semaphore(window)
        self._cancelled = False
        self._collecting: asyncio.Task[Any] | None = None
        self._in: asyncio.Queue[ClassifyStreamRequest | BaseException | None] = asyncio.Queue()
        self._out: SimpleQueue[ClassifyStreamResponse | None] = SimpleQueue()

    def read(self, requests: Iterable[ClassifyStreamRequest]) -> None:
        """Read the requests as the window allows. On a thread, as the iterator may block."""
        try:
            for request in requests:
                self._slots.acquire()
                if self._cancelled:
                    return
                self._send(request)
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            self._send(error)
        else:
            self._send(None)

    def responses(self) -> Generator[ClassifyStreamResponse, None, None]:
        """Yield the responses as they arrive. On the caller's thread."""
        while (response := self._out.get()) is not None:
            self._slots.release()
            yield response

    async def requests(self) -> AsyncIterator[ClassifyStreamRequest]:
        """Yield the requests, and raise the error of reading them, if any."""
        while (request := await self._in.get()) is not None:
            if isinstance(request, BaseException):
                raise request
            yield request

    async def collect(self, responses: AsyncGenerator[ClassifyStreamResponse, None]) -> None:
        """Pass the responses to the caller's thread."""
        self._collecting = asyncio.current_task()
        try:
            async with aclosing(responses):
                async for response in responses:
                    self._out.put(response)
        finally:
            self._out.put(None)

    async def cancel(self) -> None:
        """Stop reading, and cancel the requests in flight."""
        self._cancelled = True
        self._slots.release()
        if self._collecting is not None:
            self._collecting.cancel()
            await asyncio.wait([self._collecting])

    def _send(self, item: ClassifyStreamRequest | BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._in.put_nowait, item)
        except RuntimeError:
            # The iterator blocked until after the transport was closed.
            if not self._loop.is_closed():
                raise
