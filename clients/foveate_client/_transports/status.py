"""Converts gRPC's errors to StatusError, and counts refusals for the throttling."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from foveate.status import PUSHBACK_KEY, TRAILER, ErrorStatus, StatusError
from foveate_client._exceptions import too_large
from foveate_client._throttle import Throttle

_LARGER = re.compile(r"message larger than max \((?P<size>.+) vs\. (?P<limit>[0-9]+)\)")
"""gRPC's message for a request or response above the limit of its sender or receiver."""

_PROXY = re.compile(r"[Rr]eceived http2 header with status: (?P<status>[0-9]{3})")
"""gRPC's message for a response of HTTP that is not gRPC, such as a proxy's own."""

_RESET = re.compile(r"Received RST_STREAM with error code")

_PLAIN = re.compile(r"WRONG_VERSION_NUMBER|HTTP_REQUEST")
"""gRPC's message for a TLS handshake with a server that does not use TLS."""

_CLOSED = re.compile(r"to all (backends|addresses).*(Socket closed|Connection reset)", re.DOTALL)
"""gRPC's message where every connection was closed before its first use."""

_CAUSES = {
    413: "it refuses bodies of this size (nginx: client_max_body_size 0)",
    502: "it does not reach the server",
    503: "it does not reach the server",
    504: "it waits no longer for the server (nginx: grpc_read_timeout)",
}

HELD_BACK = ErrorStatus(
    code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
    reason="HELD_BACK",
    message="not sent: the server refuses most calls, and this client holds back",
)


@contextmanager
def throttled(throttle: Throttle | None) -> Iterator[None]:
    """Make one call where `throttle` admits it; raises StatusError where it is held back."""
    if throttle is None:
        yield
        return
    if not throttle.admits():
        raise StatusError(HELD_BACK)
    try:
        yield
    except grpc.RpcError as error:
        if not _is_refusal(error):
            throttle.accepted()
        raise
    throttle.accepted()


def _is_refusal(error: grpc.RpcError) -> bool:
    # gRPC answers RESOURCE_EXHAUSTED to a message that is too large as well.
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and PUSHBACK_KEY in _trailers(error)


def _trailers(error: grpc.RpcError) -> dict[str, bytes]:
    # The stubs describe an entry as an object, which both kinds of metadata are not: pairs.
    return dict(cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ()))


@contextmanager
def status_errors(timeout: float, late: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raise StatusError for gRPC's errors; `late` returns whether the client cancelled the call."""
    try:
        yield
    except grpc.RpcError as error:
        raise StatusError(late_status(timeout) if late() else _status_of(error, timeout)) from error


def _status_of(error: grpc.RpcError, timeout: float) -> ErrorStatus:
    details = _trailers(error).get(TRAILER)
    if details is not None:
        with suppress(DecodeError):
            return ErrorStatus.from_status(Status.FromString(details))
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return late_status(timeout)
    # gRPC's own failures, such as a refused connection, carry no details.
    text = details_of(error)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and (size := _LARGER.search(text)):
        return too_large(size["size"], int(size["limit"]))
    return ErrorStatus(code=error.code().value[0], reason="", message=text)


def details_of(error: grpc.RpcError) -> str:
    """Return gRPC's description of its own failure, and the probable cause where that is known."""
    text: str = error.details() or ""
    if answer := _PROXY.search(text):
        return _of_a_proxy(int(answer["status"]))
    if _RESET.search(text):
        text += (
            "; where a proxy stands before the server, it may refuse streams or bodies of this "
            "size or duration (nginx: client_max_body_size 0, grpc_read_timeout)"
        )
    elif _PLAIN.search(text):
        return "the server does not use TLS on this port; omit --tls, --ca and --cert"
    elif _CLOSED.search(text):
        text += (
            "; the server may want TLS (--ca, Credentials(ca=...)) "
            "or the client's certificate (--cert, Credentials(cert=...))"
        )
    return text


def _of_a_proxy(status: int) -> str:
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "no known status"
    cause = _CAUSES.get(status, "it is no gRPC server, or does not reach one")
    return f"a proxy on the way, and not the server, answered HTTP {status} ({phrase}): {cause}"


def late_status(timeout: float) -> ErrorStatus:
    """Return the status of a call without an answer within `timeout` seconds."""
    return ErrorStatus(
        code=grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
        reason="",
        message=f"no answer within {timeout:g} s",
    )
