"""Turns the statuses of errors into HTTP responses, here and nowhere else."""

import math
from collections.abc import Mapping
from typing import Any

from google.rpc.code_pb2 import Code
from starlette.responses import JSONResponse

from foveate.status import ErrorStatus, StatusError

CLIENT_CLOSED_REQUEST = 499
"""What proxies log of a client that went away before its answer (nginx)."""

STATUSES: Mapping[int, int] = {
    Code.INVALID_ARGUMENT: 400,
    # As google.rpc.Code says: what was asked for does not serve, and trying again does not help.
    Code.FAILED_PRECONDITION: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: CLIENT_CLOSED_REQUEST,
    Code.INTERNAL: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
"""The HTTP status of each code."""

STATUSES_OF_REASONS: Mapping[str, int] = {
    "METHOD_NOT_ALLOWED": 405,
    "BODY_TOO_SLOW": 408,
    "BODY_TOO_LARGE": 413,
    "IMAGE_TOO_LARGE": 413,
    "CONTENT_ENCODING_UNSUPPORTED": 415,
}
"""The HTTP status of reasons whose codes share another status."""


def failure(code: int, reason: str, message: str) -> StatusError:
    """Return an error that only HTTP has."""
    return StatusError(ErrorStatus(code=code, reason=reason, message=message))


def client_gone() -> StatusError:
    """Return the error of a client that closed its connection."""
    return failure(Code.CANCELLED, "CLIENT_GONE", "the client closed the connection")


def http_status(status: ErrorStatus) -> int:
    """Return the HTTP status of an error."""
    return STATUSES_OF_REASONS.get(status.reason) or STATUSES.get(status.code, 500)


def error_response(status: ErrorStatus) -> JSONResponse:
    """Return the response of an error."""
    body: dict[str, Any] = {
        "error": status.message,
        "code": Code.Name(status.code),
        "reason": status.reason,
    }
    if status.field_violations:
        body["field"] = status.field_violations[0].field
    if status.metadata:
        body["metadata"] = dict(status.metadata)
    headers = {}
    if status.code == Code.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    if status.retry_delay is not None:
        # The header counts whole seconds, and 0 would invite a client at once.
        headers["Retry-After"] = str(max(1, math.ceil(status.retry_delay.total_seconds())))
    return JSONResponse(body, status_code=http_status(status), headers=headers)
