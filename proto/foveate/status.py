"""Errors as they travel: a canonical code with typed details.

Server and client share this module, so that what one writes is what the other
reads. The details follow google/rpc/error_details.proto: an ErrorInfo always,
a BadRequest where a field is at fault, a RetryInfo where waiting helps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from foveate.v1.classifier_service_pb2 import FieldViolation as FieldViolationMessage
from foveate.v1.classifier_service_pb2 import ItemError

DOMAIN = "foveate"
"""The domain of every ErrorInfo."""

TRAILER = "grpc-status-details-bin"
"""The metadata key under which gRPC carries a serialised google.rpc.Status."""

PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""The metadata key under which a server that refuses a call says when to try again (gRFC A6)."""


@dataclass(frozen=True, kw_only=True)
class FieldViolation:
    """A field of a request that is at fault, and how."""

    field: str
    description: str


@dataclass(frozen=True, kw_only=True)
class ErrorStatus:
    """An error in the terms of the protocol.

    `code` is the number of a google.rpc.Code, `reason` is in upper snake case,
    `message` is a sentence for a person, and `retry_delay` is None where
    trying again would not help.
    """

    code: int
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    field_violations: Sequence[FieldViolation] = ()
    retry_delay: timedelta | None = None

    def to_status(self) -> Status:
        """Return the message of a call's trailer."""
        status = Status(code=self.code, message=self.message)
        status.details.add().Pack(
            ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=dict(self.metadata))
        )
        if self.field_violations:
            status.details.add().Pack(
                BadRequest(
                    field_violations=[
                        BadRequest.FieldViolation(field=v.field, description=v.description)
                        for v in self.field_violations
                    ]
                )
            )
        if self.retry_delay is not None:
            status.details.add().Pack(RetryInfo(retry_delay=_to_duration(self.retry_delay)))
        return status

    @classmethod
    def from_status(cls, status: Status) -> "ErrorStatus":
        """Read a call's trailer; details of unknown types are passed over."""
        info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
        for detail in status.details:
            for message in (info, bad, retry):
                detail.Unpack(message)
        return cls(
            code=status.code,
            reason=info.reason,
            message=status.message,
            metadata=dict(info.metadata),
            field_violations=tuple(
                FieldViolation(field=v.field, description=v.description)
                for v in bad.field_violations
            ),
            retry_delay=_from_duration(retry.retry_delay)
            if retry.HasField("retry_delay")
            else None,
        )

    def to_item_error(self) -> ItemError:
        """Return the error of one item of a stream."""
        return ItemError(
            code=self.code,
            reason=self.reason,
            message=self.message,
            metadata=dict(self.metadata),
            field_violations=[
                FieldViolationMessage(field=v.field, description=v.description)
                for v in self.field_violations
            ],
            retry_delay=None if self.retry_delay is None else _to_duration(self.retry_delay),
        )

    @classmethod
    def from_item_error(cls, error: ItemError) -> "ErrorStatus":
        """Read the error of one item of a stream."""
        return cls(
            code=error.code,
            reason=error.reason,
            message=error.message,
            metadata=dict(error.metadata),
            field_violations=tuple(
                FieldViolation(field=v.field, description=v.description)
                for v in error.field_violations
            ),
            retry_delay=_from_duration(error.retry_delay)
            if error.HasField("retry_delay")
            else None,
        )


class StatusError(Exception):
    """A failed call, carrying its status. What an in-process call raises where gRPC would abort."""

    def __init__(self, status: ErrorStatus) -> None:
        super().__init__(status.message)
        self.status = status


def _to_duration(delay: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(delay)
    return duration


def _from_duration(duration: Duration) -> timedelta:
    return duration.ToTimedelta()
