"""The errors of a request.

    ServeError
      +-- InvalidRequestError     an argument is bad; a retry does not help
      +-- NotFoundError           there is no such model or version
      +-- NotReadyError           the version exists and is not served
      +-- LoadingError            the version is loading
      +-- StoppingError           the server is stopping
      +-- OverloadedError         the load is shed; a retry later may succeed
      +-- DeadlineError           the deadline passed
      +-- UnauthenticatedError    the call has no token, or an unknown one
      +-- ForbiddenError          the call is not allowed on this server
      +-- EngineError             the engine failed
      +-- EngineHungError         a run of the engine does not return

`foveate_serve.rpc.errors` gives each its canonical code. A message is a
sentence for the client and contains neither a path nor another exception's text.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from itertools import islice

# Messages are sent in trailers, for which gRPC allows 8 KiB.
_MAX_QUOTED = 64
_MAX_LISTED = 16


def clip(text: str) -> str:
    """Return a text of the client's for metadata, shortened where it is long."""
    return text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED - 3]}..."


def quote(text: str) -> str:
    """Return a text of the client's for a message: quoted, in ASCII, shortened where it is long."""
    return ascii(clip(text))


def listing(names: Iterable[str]) -> str:
    """Return names for a message; of many, the first."""
    rest = iter(names)
    first = list(islice(rest, _MAX_LISTED))
    more = sum(1 for _ in rest)
    return (", ".join(first) or "none") + (f" and {more} more" if more else "")


class ServeError(Exception):
    """The failure of a request.

    `reason` is in upper snake case. `metadata` holds the values that belong to it,
    such as a limit, by name.
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

    def at(self, field: str, message: str | None = None) -> "InvalidRequestError":
        """Return the error with another path, and with another message where one is given."""
        return InvalidRequestError(
            self.reason, message or self.message, field=field, metadata=self.metadata
        )


class NotFoundError(ServeError):
    """There is no such model or version."""


class NotReadyError(ServeError):
    """The version exists and does not serve."""


class LoadingError(ServeError):
    """The version is loading."""


class StoppingError(ServeError):
    """The server is stopping."""

    def __init__(self) -> None:
        super().__init__("STOPPING", "the server is stopping; try another")


class OverloadedError(ServeError):
    """The server sheds load; after `retry_delay` a request should be admitted."""

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
    """The call has no token, or an unknown one."""


class ForbiddenError(ServeError):
    """The call is not allowed on this server."""


class EngineError(ServeError):
    """The engine failed on this request."""

    def __init__(self) -> None:
        super().__init__("ENGINE_FAILED", "the engine failed to run the model")


class EngineHungError(ServeError):
    """A run of the engine does not return: this request's or another one's."""

    def __init__(self) -> None:
        super().__init__("ENGINE_HUNG", "the engine did not return from running the model in time")
