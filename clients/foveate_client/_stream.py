"""The bookkeeping of a stream of pictures, the same for both clients."""

from collections import deque
from itertools import count

from google.rpc import code_pb2

from foveate.status import ErrorStatus
from foveate.v1.classifier_service_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
    ClassifyStreamResponse,
)
from foveate_client._exceptions import CallError, ImageError, error_from
from foveate_client._results import Classification


class Window:
    """The pictures whose results have not been taken yet, oldest first, at most `size`.

    Raises ValueError where `size` is below 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"in_flight must be at least 1, not {size}")
        self._size = size
        self._pending: deque[str | ImageError] = deque()
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def full(self) -> bool:
        """Whether a result must be taken before the next picture is read."""
        return len(self._pending) >= self._size

    def sent(self, request: ClassifyRequest) -> ClassifyStreamRequest:
        """Note a picture that is sent, and return its request under a name of its own."""
        name = str(next(self._numbers))
        self._pending.append(name)
        return ClassifyStreamRequest(request_id=name, request=request)

    def failed(self, error: ImageError) -> None:
        """Note a picture that could not be read."""
        self._pending.append(error)

    def pop(self) -> str | ImageError:
        """Return the oldest picture: the name it was sent under, or why it was not sent."""
        return self._pending.popleft()


def outcome(name: str, answer: ClassifyStreamResponse | None) -> Classification | CallError:
    """Return the result of the picture sent as `name`, or its error.

    Raises InternalError where the server broke the stream's order or ended it
    too early.
    """
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
