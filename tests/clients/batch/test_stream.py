from itertools import islice

import grpc
import pytest

from foveate.status import ErrorStatus, FieldViolation, StatusError
from foveate.v1 import classifier_service_pb2 as service
from foveate_client import (
    CallError,
    Classification,
    Client,
    DeadlineExceededError,
    ImageError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from foveate_client.batch.sources import Item
from foveate_client.batch.stream import Task, classify_tasks

from ...waiting import LIMIT_SECONDS
from ..conftest import stream_answer

INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, PERMISSION_DENIED = 3, 4, 5, 7
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL = 8, 9, 12, 13
UNAUTHENTICATED = 16


@pytest.fixture
def client(server):
    with Client(server.address, timeout=10) as client:
        yield client


def tasks(image, count):
    return [Task(number, Item(str(number), image, None)) for number in range(count)]


def classify(client, items, *, in_flight=4, patience=10.0):
    return classify_tasks(client, items, {}, in_flight=in_flight, patience=patience)


def test_each_task_comes_with_its_result_in_order(client, chelsea):
    given = tasks(chelsea, 10)
    missing = Task(3, Item("3", chelsea.with_name("missing"), None))
    given[3] = missing
    found = list(classify(client, given))
    assert [task for task, _ in found] == given
    assert isinstance(found[3][1], ImageError)
    assert all(isinstance(x, Classification) for task, x in found if task != missing)


def test_no_more_are_read_than_may_be_in_flight(client, chelsea):
    read = 0

    def reading():
        nonlocal read
        for task in tasks(chelsea, 30):
            read += 1
            yield task

    for taken, _ in enumerate(classify(client, reading(), in_flight=4)):
        assert read - taken <= 5


def test_a_broken_stream_goes_on_with_what_was_not_answered(server, client, chelsea):
    streams = []
    answer_all = server.service.classify_stream

    def breaking(requests, context):
        streams.append(context)
        if len(streams) < 3:
            yield from islice(answer_all(requests, context), 5)
            context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
        yield from answer_all(requests, context)

    server.service.classify_stream = breaking
    found = list(classify(client, tasks(chelsea, 20)))
    assert len(streams) == 3
    assert [task.position for task, _ in found] == list(range(20))
    assert all(isinstance(x, Classification) for _, x in found)


def test_a_server_that_stays_away_ends_the_run(server, client, chelsea):
    def broken(requests, context):
        context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    server.service.classify_stream = broken
    with pytest.raises(UnavailableError, match="going away"):
        list(classify(client, tasks(chelsea, 3), patience=0.3))


@pytest.fixture
def full(server):
    """The server, whose queue is full for every stream and for the first two single calls."""
    answer = server.service.classify
    refusals = []

    def in_stream(requests, context):
        error = service.ItemError(code=RESOURCE_EXHAUSTED, reason="QUEUE_FULL", message="full")
        for request in requests:
            yield service.ClassifyStreamResponse(request_id=request.request_id, error=error)

    def alone(request):
        refusals.append(request)
        if len(refusals) < 3:
            raise StatusError(ErrorStatus(code=RESOURCE_EXHAUSTED, reason="", message="full"))
        return answer(request)

    server.service.classify_stream = in_stream
    server.service.classify = alone
    return refusals


def test_a_picture_that_is_refused_for_the_moment_is_asked_for_again(full, client, chelsea):
    ((_, found),) = classify(client, tasks(chelsea, 1))
    assert isinstance(found, Classification)
    assert len(full) == 3


def test_a_server_that_stays_full_ends_the_run(full, client, chelsea):
    with pytest.raises(ResourceExhaustedError, match="full"):
        list(classify(client, tasks(chelsea, 3), patience=0.05))
    assert not full


def test_a_picture_that_stays_late_keeps_its_error(server, client, chelsea):
    def late(requests, context):
        for number, request in enumerate(requests):
            answer = stream_answer(request, server.service.classify)
            if number == 1:
                answer = service.ClassifyStreamResponse(
                    request_id=request.request_id,
                    error=service.ItemError(code=DEADLINE_EXCEEDED, message="late"),
                )
            yield answer

    server.service.classify_stream = late
    outcomes = [found for _, found in classify(client, tasks(chelsea, 3), patience=0.0)]
    kinds = [Classification, DeadlineExceededError, Classification]
    assert [type(found) for found in outcomes] == kinds


@pytest.mark.parametrize(
    "refusal",
    [
        (NOT_FOUND, "VERSION_NOT_FOUND", ""),
        (FAILED_PRECONDITION, "MODEL_NOT_READY", ""),
        (PERMISSION_DENIED, "FORBIDDEN", ""),
        (UNAUTHENTICATED, "TOKEN_UNKNOWN", ""),
        (UNIMPLEMENTED, "", ""),
        (INTERNAL, "ENGINE_HUNG", ""),
        (INVALID_ARGUMENT, "LAYER_UNKNOWN", "feature_maps[0].layer"),
        (INVALID_ARGUMENT, "MODEL_REQUIRED", "model"),
    ],
)
def test_an_error_that_every_picture_would_have_ends_the_run(server, client, chelsea, refusal):
    code, reason, field = refusal
    answer, asked = server.service.classify, []

    def refuse_all_but_two(request):
        asked.append(request)
        if len(asked) < 3:
            return answer(request)
        violations = (FieldViolation(field=field, description=""),) if field else ()
        raise StatusError(
            ErrorStatus(code=code, reason=reason, message="no", field_violations=violations)
        )

    server.service.classify = refuse_all_but_two
    found = []
    with pytest.raises(CallError, match="no") as raised:
        found.extend(classify(client, tasks(chelsea, 50), in_flight=2))
    assert raised.value.status.code == code
    assert len(asked) < 10


@pytest.mark.parametrize("field", ["encoded", "raw.data", "image", ""])
def test_an_error_of_a_picture_does_not(server, client, chelsea, field):
    def refuse(request):
        violations = (FieldViolation(field=field, description=""),) if field else ()
        raise StatusError(
            ErrorStatus(
                code=INVALID_ARGUMENT, reason="BAD", message="no", field_violations=violations
            )
        )

    server.service.classify = refuse
    outcomes = [found for _, found in classify(client, tasks(chelsea, 3))]
    assert [type(found) for found in outcomes] == [InvalidArgumentError] * 3


def test_a_picture_above_the_limit_is_not_asked_for_again(server, client, chelsea):
    given = tasks(chelsea, 5)
    given[2] = Task(2, Item("2", b"x" * 5_500_000, None))
    found = [outcome for _, outcome in classify(client, given, patience=LIMIT_SECONDS)]
    assert isinstance(found[2], ResourceExhaustedError)
    assert [isinstance(x, Classification) for x in found] == [True, True, False, True, True]


def test_a_picture_that_is_wrong_is_not_asked_for_again(server, client, chelsea):
    asked = []

    def refuse(request):
        asked.append(request)
        raise StatusError(ErrorStatus(code=INVALID_ARGUMENT, reason="BAD", message="bad"))

    server.service.classify = refuse
    ((_, found),) = classify(client, tasks(chelsea, 1))
    assert isinstance(found, InvalidArgumentError)
    assert len(asked) == 1
