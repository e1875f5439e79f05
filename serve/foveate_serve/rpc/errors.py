"""Maps the server's errors to canonical codes."""

import logging
from contextlib import AbstractContextManager
from types import TracebackType

from google.rpc.code_pb2 import Code

from foveate.status import ErrorStatus, FieldViolation, StatusError
from foveate_serve.errors import (
    DeadlineError,
    EngineError,
    EngineHungError,
    ForbiddenError,
    InvalidRequestError,
    LoadingError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    ServeError,
    UnauthenticatedError,
)

logger = logging.getLogger(__name__)

CODES: dict[type[ServeError], int] = {
    InvalidRequestError: Code.INVALID_ARGUMENT,
    NotFoundError: Code.NOT_FOUND,
    NotReadyError: Code.FAILED_PRECONDITION,
    LoadingError: Code.UNAVAILABLE,
    OverloadedError: Code.RESOURCE_EXHAUSTED,
    DeadlineError: Code.DEADLINE_EXCEEDED,
    UnauthenticatedError: Code.UNAUTHENTICATED,
    ForbiddenError: Code.PERMISSION_DENIED,
    EngineError: Code.INTERNAL,
    # Not UNAVAILABLE: a client would retry, and the same request could hang the next engine.
    EngineHungError: Code.INTERNAL,
}

INTERNAL = ErrorStatus(
    code=Code.INTERNAL, reason="INTERNAL", message="the server failed; its log says why"
)
"""The status of an unexpected error."""


def to_status(error: ServeError) -> ErrorStatus:
    """Convert an error to the protocol's status."""
    return ErrorStatus(
        code=CODES[type(error)],
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
        field_violations=(FieldViolation(field=error.field, description=error.message),)
        if isinstance(error, InvalidRequestError)
        else (),
        retry_delay=error.retry_delay if isinstance(error, OverloadedError) else None,
    )


def status_errors() -> AbstractContextManager[None]:
    """Turn every error of the block into a StatusError; log unexpected ones."""
    return _STATUS_ERRORS


class _StatusErrors(AbstractContextManager[None]):
    # A class with a single instance: a generator for each call takes four times as long.

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, ServeError):
            raise StatusError(to_status(error)) from error
        if isinstance(error, Exception):
            logger.exception("a call failed")
            raise StatusError(INTERNAL) from error


_STATUS_ERRORS = _StatusErrors()
