"""The bookkeeping of a stream of pictures, the same for both clients."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from google.rpc import code_pb2

from foveate.status import ErrorStatus
from foveate.v1.classifier_service_pb2 import (
    ClassifyStreamRequest,
    ClassifyStreamResponse,
)
from foveate_client._exceptions import (
    MESSAGE_TOO_LARGE,
    CallError,
    FoveateError,
    error_from,
    too_large,
)
from foveate_client._images import ImageInput
from foveate_client._options import ClassifyOptions, classify_request
from foveate_client._results import Classification

MAX_IN_FLIGHT_BYTES = 32 * 2**20
"""The most bytes of the messages in flight; a single message may be larger."""


@dataclass(frozen=True, eq=False)
class _Sent:
    """A picture that was sent, its request id, and the bytes of its message."""

    image: ImageInput
    name: str
    size: int


class Window:
    """The pictures in flight, oldest first, at most `size` beside the one to be sent next.

    All of their messages together have at most MAX_IN_FLIGHT_BYTES. A picture is kept
    until it is answered: a message above the server's limit ends the stream, and the
    others are sent again over a new one. Raises ValueError where `size` is below 1.
    """

    def __init__(self, size: int, options: ClassifyOptions) -> None:
        if size < 1:
            raise ValueError(f"in_flight must be at least 1, not {size}")
        self._size = size
        self._options = options
        self._unsent: deque[ImageInput | FoveateError] = deque()
        self._pending: deque[_Sent | FoveateError] = deque()
        self._numbers = count()
        self._limit: int | None = None
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def full(self) -> bool:
        """Whether a result must be taken before the next picture is sent."""
        return len(self._pending) >= self._size or self._bytes >= MAX_IN_FLIGHT_BYTES

    def left(self) -> Iterator[None]:
        """Step through the pictures that were read and not sent; `send` takes each."""
        while self._unsent:
            yield

    def read(self, image: ImageInput) -> None:
        """Take a picture, which `send` is to send."""
        self._unsent.append(image)

    def send(self) -> ClassifyStreamRequest | None:
        """Return the request of the next picture; None where it fails without being sent."""
        image = self._unsent.popleft()
        if isinstance(image, FoveateError):
            self._pending.append(image)
            return None
        try:
            request = ClassifyStreamRequest(
                request_id=str(next(self._numbers)),
                request=classify_request(image, **self._options),
            )
        except FoveateError as error:
            self._pending.append(error)
            return None
        size = request.ByteSize()
        if self._limit is not None and size > self._limit:
            self._pending.append(error_from(too_large(size, self._limit)))
            return None
        self._pending.append(_Sent(image, request.request_id, size))
        self._bytes += size
        return request

    @property
    def waits(self) -> bool:
        """Whether the oldest picture was sent, so that its answer must come before its result."""
        return isinstance(self._pending[0], _Sent)

    def take(self, answer: ClassifyStreamResponse | None) -> Classification | FoveateError:
        """Return the result of the oldest picture, or its error; `answer` is that to it.

        Raises InternalError where the server answers out of order, or ends the stream
        too early.
        """
        oldest = self._pending[0]
        result = _outcome(oldest.name, answer) if isinstance(oldest, _Sent) else oldest
        self._pending.popleft()
        self._bytes -= oldest.size if isinstance(oldest, _Sent) else 0
        return result

    def refuse(self, error: CallError) -> bool:
        """Return whether pictures that were sent are above the limit that ended the stream.

        Each of these fails with an error of its own. The others are to be sent again.
        """
        if error.reason != MESSAGE_TOO_LARGE:
            return False
        limit = self._limit = int(error.metadata["limit"])
        settled: list[ImageInput | FoveateError] = [
            sent
            if isinstance(sent, FoveateError)
            else error_from(too_large(sent.size, limit))
            if sent.size > limit
            else sent.image
            for sent in self._pending
        ]
        refused = any(isinstance(sent, _Sent) and sent.size > limit for sent in self._pending)
        if refused:
            self._unsent.extendleft(reversed(settled))
            self._pending.clear()
            self._bytes = 0
        return refused


def _outcome(name: str, answer: ClassifyStreamResponse | None) -> Classification | CallError:
    if answer is None:
        raise _broken("the server ended the stream before it had answered every picture")
    if answer.request_id != name:
        raise _broken(f"the server answered {answer.request_id!r} where {name!r} was due")
    if answer.WhichOneof("result") == "error":
        return error_from(ErrorStatus.from_item_error(answer.error))
    return Classification.from_message(answer.response)


def _broken(message: str) -> CallError:
    return error_from(
        ErrorStatus(code=code_pb2.Code.Value("INTERNAL"), reason="STREAM_BROKEN", message=message)
    )
