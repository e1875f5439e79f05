"""Turns errors into the protocol's statuses."""

import logging

from google.protobuf.message import DecodeError
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
    StoppingError,
    UnauthenticatedError,
)
from foveate_serve.transports.base import SERVER_FAILED

logger = logging.getLogger(__name__)

CODES: dict[type[ServeError], int] = {
    InvalidRequestError: Code.INVALID_ARGUMENT,
    NotFoundError: Code.NOT_FOUND,
    NotReadyError: Code.FAILED_PRECONDITION,
    LoadingError: Code.UNAVAILABLE,
    StoppingError: Code.UNAVAILABLE,
    OverloadedError: Code.RESOURCE_EXHAUSTED,
    DeadlineError: Code.DEADLINE_EXCEEDED,
    UnauthenticatedError: Code.UNAUTHENTICATED,
    ForbiddenError: Code.PERMISSION_DENIED,
    EngineError: Code.INTERNAL,
    # Not UNAVAILABLE: a client would retry, and the same request could hang the next engine.
    EngineHungError: Code.INTERNAL,
}

INTERNAL = ErrorStatus(code=Code.INTERNAL, reason="INTERNAL", message=SERVER_FAILED)
"""The status of an unexpected error."""


MALFORMED = ErrorStatus(
    code=Code.INVALID_ARGUMENT,
    reason="MESSAGE_MALFORMED",
    message="the bytes of the request are no message of this method",
)
"""Without it gRPC sends UNKNOWN with the text of Python's exception, and logs a traceback."""


def status_of(error: Exception) -> ErrorStatus:
    """Return the status of an error; one that is unexpected is logged, and its text kept back."""
    if isinstance(error, ServeError):
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
    if isinstance(error, StatusError):
        return error.status
    if isinstance(error, DecodeError):
        return MALFORMED
    logger.error("a call failed", exc_info=error)
    return INTERNAL
