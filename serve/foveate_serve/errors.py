"""Why a request fails, in the server's own terms.

    ServeError
      +-- InvalidRequestError     an argument is bad, and stays bad
      +-- NotFoundError           no such model or version
      +-- NotReadyError           there, but not served
      +-- LoadingError            not served yet
      +-- OverloadedError         too much at once; later it will fit
      +-- DeadlineError           too late
      +-- UnauthenticatedError    the caller does not say who it is
      +-- ForbiddenError          not allowed here
      +-- EngineError             the engine failed
      +-- EngineHungError         the engine does not come back

`foveate_serve.rpc.errors` gives each its canonical code. A message is a
sentence for the client and carries neither a path nor another exception's text.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from itertools import islice

# Messages travel in a trailer, of which gRPC takes 8 KiB.
_MAX_QUOTED = 64
_MAX_LISTED = 16


def clip(text: str) -> str:
    """Return a client's own text for metadata, cut where it is long."""
    return text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED - 3]}..."


def quote(text: str) -> str:
    """Return a client's own text for a message: in quotes, in ASCII, cut where it is long."""
    return ascii(clip(text))


def listing(names: Iterable[str]) -> str:
    """Return names for a message, the first of them where they are many."""
    rest = iter(names)
    first = list(islice(rest, _MAX_LISTED))
    more = sum(1 for _ in rest)
    return (", ".join(first) or "none") + (f" and {more} more" if more else "")


class ServeError(Exception):
    """A request that fails.

    `reason` is in upper snake case, `metadata` holds the names and values that
    belong to it, such as a limit.
    """

    def __init__(
        self, reason: str, message: str, *, metadata: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = {name: str(value) for name, value in (metadata or {}).items()}


class InvalidRequestError(ServeError):
    """An argument is bad: `field` is its path in the request."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        field: str,
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata=metadata)
        self.field = field


class NotFoundError(ServeError):
    """There is no such model or version."""


class NotReadyError(ServeError):
    """The model's version is there and does not serve."""


class LoadingError(ServeError):
    """The model's version does not serve yet."""


class OverloadedError(ServeError):
    """The server is full; after `retry_delay` it should have room."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry_delay: timedelta,
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata=metadata)
        self.retry_delay = retry_delay


class DeadlineError(ServeError):
    """The request's deadline passed before it was answered."""

    def __init__(self) -> None:
        super().__init__("DEADLINE_EXCEEDED", "the deadline passed before the answer was ready")


class UnauthenticatedError(ServeError):
    """The call carries no token, or one that is not known."""


class ForbiddenError(ServeError):
    """The call is not allowed on this server."""


class EngineError(ServeError):
    """The engine failed on this request."""

    def __init__(self) -> None:
        super().__init__("ENGINE_FAILED", "the engine failed to run the model")


class EngineHungError(ServeError):
    """The engine does not come back from a run, of this request or of another one."""

    def __init__(self) -> None:
        super().__init__("ENGINE_HUNG", "the engine does not come back from running the model")
