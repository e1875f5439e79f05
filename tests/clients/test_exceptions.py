import pickle
from datetime import timedelta

import grpc
import pytest
from google.rpc import code_pb2

import foveate_client
from foveate.status import TRAILER, ErrorStatus, FieldViolation, StatusError
from foveate_client import AsyncClient, CallError, Client, FoveateError, UnknownError, _exceptions

CODES = {name: number for name, number in code_pb2.Code.items() if name != "OK"}


def refusal(code: int) -> ErrorStatus:
    return ErrorStatus(
        code=code,
        reason="FOR_THE_TEST",
        message="it was refused",
        metadata={"limit": "7"},
        field_violations=(FieldViolation(field="top_k", description="must be at most 7"),),
        retry_delay=timedelta(seconds=2),
    )


def raises(status: ErrorStatus):
    def classify(request):
        raise StatusError(status)

    return classify


def check(error: CallError, name: str) -> None:
    assert type(error).__name__ == name.title().replace("_", "") + "Error"
    assert error.code == name
    assert str(error) == error.message == "it was refused"
    assert error.reason == "FOR_THE_TEST"
    assert error.metadata == {"limit": "7"}
    assert [(v.field, v.description) for v in error.field_violations] == [
        ("top_k", "must be at most 7")
    ]
    assert error.retry_delay == timedelta(seconds=2)


@pytest.mark.parametrize("name", CODES)
def test_every_code_has_its_error(server, coffee, name):
    server.service.classify = raises(refusal(CODES[name]))
    with Client(server.address) as client, pytest.raises(CallError) as caught:
        client.classify(coffee)
    check(caught.value, name)


@pytest.mark.parametrize("name", CODES)
async def test_every_code_has_its_error_under_asyncio(server, coffee, name):
    server.service.classify = raises(refusal(CODES[name]))
    async with AsyncClient(server.address) as client:
        with pytest.raises(CallError) as caught:
            await client.classify(coffee)
    check(caught.value, name)


def test_the_tree_is_drawn_whole_and_exported():
    errors = [FoveateError, *FoveateError.__subclasses__(), *CallError.__subclasses__()]
    # The commands have errors of their own, which the library does not raise.
    for error in [error for error in errors if error.__module__ == _exceptions.__name__]:
        assert error.__name__ in _exceptions.__doc__
        assert getattr(foveate_client, error.__name__) is error
    assert {error.code for error in CallError.__subclasses__()} == set(CODES)


def test_a_code_from_the_future_is_unknown():
    error = _exceptions.error_from(ErrorStatus(code=99, reason="NEW", message="new"))
    assert type(error) is UnknownError
    assert error.reason == "NEW"


@pytest.mark.parametrize("trailer", [(), ((TRAILER, b"\xff not a status"),)])
def test_an_error_without_readable_details_keeps_its_code_and_message(server, coffee, trailer):
    def classify_stream(requests, context):
        context.set_trailing_metadata(trailer)
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")

    server.service.classify_stream = classify_stream
    with Client(server.address) as client:
        results = client.classify_many([coffee])
        with pytest.raises(foveate_client.PermissionDeniedError, match="not you") as caught:
            next(results)
    assert caught.value.reason == "PERMISSION_DENIED"
    assert caught.value.retry_delay is None


def test_a_call_error_can_cross_processes():
    error = _exceptions.error_from(refusal(CODES["NOT_FOUND"]))
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    check(copy, "NOT_FOUND")


def test_a_missing_distribution_names_its_pip_line():
    error = foveate_client.MissingDistributionError("this", "foveate-serve[cpu]")
    assert str(error).endswith("pip install 'foveate-serve[cpu]'")
