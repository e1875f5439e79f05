"""An error read back is the error that was written, whichever way it travelled."""

from datetime import timedelta

from google.protobuf.any_pb2 import Any
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from foveate.status import DOMAIN, ErrorStatus, FieldViolation

texts = st.text(max_size=40)
errors = st.builds(
    ErrorStatus,
    code=st.sampled_from([number for number in Code.values() if number]),
    reason=st.from_regex(r"[A-Z][A-Z_]{0,20}[A-Z]", fullmatch=True),
    message=texts,
    metadata=st.dictionaries(texts, texts, max_size=3),
    field_violations=st.lists(
        st.builds(FieldViolation, field=texts, description=texts), max_size=3
    ).map(tuple),
    retry_delay=st.none() | st.timedeltas(timedelta(0), timedelta(days=1)),
)


@given(errors)
def test_a_status_keeps_the_error(error: ErrorStatus) -> None:
    wire = error.to_status().SerializeToString()
    assert ErrorStatus.from_status(Status.FromString(wire)) == error


@given(errors)
def test_an_item_error_keeps_the_error(error: ErrorStatus) -> None:
    assert ErrorStatus.from_item_error(error.to_item_error()) == error


def test_the_details_are_those_of_google_rpc() -> None:
    status = ErrorStatus(
        code=Code.INVALID_ARGUMENT,
        reason="TOP_K_OUT_OF_RANGE",
        message="top_k is 0; it must be from 1 to 10",
        metadata={"limit": "10"},
        field_violations=[FieldViolation(field="top_k", description="must be from 1 to 10")],
    ).to_status()
    info, bad = ErrorInfo(), BadRequest()
    assert [
        detail.Is(kind.DESCRIPTOR) for detail, kind in zip(status.details, (info, bad), strict=True)
    ]
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.domain, info.reason, info.metadata["limit"]) == (
        DOMAIN,
        "TOP_K_OUT_OF_RANGE",
        "10",
    )
    assert bad.field_violations[0].field == "top_k"


def test_unknown_details_are_passed_over() -> None:
    status = Status(code=Code.INTERNAL, message="m", details=[Any(type_url="x/y", value=b"z")])
    assert ErrorStatus.from_status(status) == ErrorStatus(
        code=Code.INTERNAL, reason="", message="m"
    )
