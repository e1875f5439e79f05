"""The errors of the library.

FoveateError
├── ImageError                        a picture cannot be read on this side
│   └── TooMuchMemoryError            it takes too much memory to draw on
├── MissingDistributionError          a part of Foveate is not installed
├── ForkedError                       the client was made before a fork
└── CallError                         a call failed
    ├── CancelledError                CANCELLED
    ├── UnknownError                  UNKNOWN
    ├── InvalidArgumentError          INVALID_ARGUMENT
    ├── DeadlineExceededError         DEADLINE_EXCEEDED
    ├── NotFoundError                 NOT_FOUND
    ├── AlreadyExistsError            ALREADY_EXISTS
    ├── PermissionDeniedError         PERMISSION_DENIED
    ├── ResourceExhaustedError        RESOURCE_EXHAUSTED
    ├── FailedPreconditionError       FAILED_PRECONDITION
    ├── AbortedError                  ABORTED
    ├── OutOfRangeError               OUT_OF_RANGE
    ├── UnimplementedError            UNIMPLEMENTED
    ├── InternalError                 INTERNAL
    ├── UnavailableError              UNAVAILABLE
    ├── DataLossError                 DATA_LOSS
    └── UnauthenticatedError          UNAUTHENTICATED
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import ClassVar

from google.rpc import code_pb2

from foveate.status import ErrorStatus, FieldViolation, StatusError


class FoveateError(Exception):
    """The base of every error that this library raises on purpose."""


class ImageError(FoveateError):
    """A picture cannot be read on this side: a missing file, or an array of the wrong kind."""


class TooMuchMemoryError(ImageError):
    """A picture can be classified, but takes more memory to draw on than is allowed."""


class ForkedError(FoveateError):
    """The client was made in another process, which has forked since."""

    def __str__(self) -> str:
        return "the client was made before a fork; make one in each process"


class MissingDistributionError(FoveateError):
    """A part of Foveate is not installed; `requirement` is what pip is to install."""

    def __init__(self, purpose: str, requirement: str) -> None:
        super().__init__(purpose, requirement)
        self.purpose = purpose
        self.requirement = requirement

    def __str__(self) -> str:
        return f"{self.purpose} needs a part that is not installed: {pip_line(self.requirement)}"


def os_reason(error: OSError) -> str:
    """Return what the system says of a file that cannot be read or written, and the file's name."""
    place = "" if error.filename is None else f": {error.filename}"
    return f"{error.strerror or error}{place}"


def pip_line(requirement: str) -> str:
    """Return the command that installs `requirement`, quoted for a shell."""
    return f"pip install {shlex.quote(requirement)}"


class CallError(FoveateError):
    """A call failed, in the server or before it reached the server.

    Each canonical code has a subclass. A code that is not canonical raises UnknownError.
    """

    code: ClassVar[str]
    """The canonical code's name, such as "NOT_FOUND"."""

    def __init__(self, status: ErrorStatus) -> None:
        super().__init__(status)
        self._status = status

    def __str__(self) -> str:
        return self.message

    @property
    def status(self) -> ErrorStatus:
        """The error in the terms of the protocol."""
        return self._status

    @property
    def reason(self) -> str:
        """The reason in upper snake case; the code's name where the server gives none."""
        return self._status.reason or self.code

    @property
    def message(self) -> str:
        """A sentence for a person."""
        return self._status.message or self.code

    @property
    def metadata(self) -> Mapping[str, str]:
        """Names and values that belong to the reason, such as a limit."""
        return self._status.metadata

    @property
    def field_violations(self) -> Sequence[FieldViolation]:
        """The fields of the request at fault."""
        return self._status.field_violations

    @property
    def retry_delay(self) -> timedelta | None:
        """How long to wait before a retry; None where a retry would not help."""
        return self._status.retry_delay


class CancelledError(CallError):
    """The caller cancelled the call."""

    code = "CANCELLED"


class UnknownError(CallError):
    """An error of no known kind."""

    code = "UNKNOWN"


class InvalidArgumentError(CallError):
    """The request is wrong in every state of the server; `field_violations` names the fields."""

    code = "INVALID_ARGUMENT"


class DeadlineExceededError(CallError):
    """The deadline passed before the answer."""

    code = "DEADLINE_EXCEEDED"


class NotFoundError(CallError):
    """What was asked for does not exist."""

    code = "NOT_FOUND"


class AlreadyExistsError(CallError):
    """What was to be made exists."""

    code = "ALREADY_EXISTS"


class PermissionDeniedError(CallError):
    """The caller has no permission for this."""

    code = "PERMISSION_DENIED"


class ResourceExhaustedError(CallError):
    """A quota or a queue is full; `retry_delay` is the time to wait before a retry.

    Or a message is above its limit, and a retry does not help: the reason is
    MESSAGE_TOO_LARGE, and `metadata` holds its `size` and the `limit`.
    """

    code = "RESOURCE_EXHAUSTED"


class FailedPreconditionError(CallError):
    """The server is not in the state that the call needs."""

    code = "FAILED_PRECONDITION"


class AbortedError(CallError):
    """Another call changed the same thing at the same time."""

    code = "ABORTED"


class OutOfRangeError(CallError):
    """A value is out of range."""

    code = "OUT_OF_RANGE"


class UnimplementedError(CallError):
    """The server does not implement the method."""

    code = "UNIMPLEMENTED"


class InternalError(CallError):
    """The server failed."""

    code = "INTERNAL"


class UnavailableError(CallError):
    """The server cannot be reached, or accepts no calls at present."""

    code = "UNAVAILABLE"


class DataLossError(CallError):
    """Data was lost or damaged beyond repair."""

    code = "DATA_LOSS"


class UnauthenticatedError(CallError):
    """The call has no valid token or certificate."""

    code = "UNAUTHENTICATED"


MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
"""The reason of a ResourceExhaustedError that a retry does not help: the message is too large."""


def too_large(size: int | str, limit: int) -> ErrorStatus:
    """Return the error of a message of so many bytes."""
    return ErrorStatus(
        code=code_pb2.Code.Value("RESOURCE_EXHAUSTED"),
        reason=MESSAGE_TOO_LARGE,
        message=f"the message has {size} bytes; the limit is {limit} bytes",
        metadata={"size": str(size), "limit": str(limit)},
    )


_BY_CODE = {code_pb2.Code.Value(kind.code): kind for kind in CallError.__subclasses__()}


def error_from(status: ErrorStatus) -> CallError:
    """Return the error of `status`, of the class of its code."""
    return _BY_CODE.get(status.code, UnknownError)(status)


@contextmanager
def client_errors() -> Iterator[None]:
    """Turn a transport's StatusError into the error of its code."""
    try:
        yield
    except StatusError as error:
        raise error_from(error.status) from error
