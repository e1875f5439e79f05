import gc
import re
import threading

import grpc
import numpy as np
import pytest

from foveate.status import ErrorStatus, StatusError
from foveate.v1 import classifier_service_pb2 as service
from foveate_client import (
    AsyncClient,
    Cam,
    Classification,
    Client,
    DeadlineExceededError,
    ImageError,
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    _stream,
)
from foveate_client._transports import channel

from ..waiting import LIMIT_SECONDS
from .conftest import stream_answer

NOT_FOUND = 5


@pytest.fixture
def refusing(server):
    """The server, refusing Chelsea."""
    answer = server.service.classify

    def classify(request):
        response = answer(request)
        if response.view.source_width == 451:
            raise StatusError(ErrorStatus(code=NOT_FOUND, reason="NO_CATS", message="no cats"))
        return response

    server.service.classify = classify
    return server


def check_mixture(results: list[object]) -> None:
    assert [type(result) for result in results] == [
        Classification,
        NotFoundError,
        ImageError,
        ImageError,
        Classification,
    ]
    assert results[0].view.source_width == 600
    assert results[1].reason == "NO_CATS"
    assert results[4].cams[0].label == "tiger cat"


@pytest.mark.parametrize("in_flight", [1, 2, 16])
def test_an_error_stands_in_the_place_of_its_picture(refusing, coffee, chelsea, in_flight):
    images = [coffee, chelsea, coffee.with_name("missing.png"), coffee.parent, coffee]
    with Client(refusing.address) as client:
        check_mixture(list(client.classify_many(images, in_flight=in_flight, cam=Cam())))


LIMIT = 4 << 20
"""Of a server of gRPC that is told no other: the fake one."""


def check_too_large(results: list[object], answered: list[bool]) -> None:
    assert [isinstance(result, Classification) for result in results] == answered
    for result in results:
        if not isinstance(result, Classification):
            assert isinstance(result, ResourceExhaustedError)
            assert (result.reason, result.retry_delay) == ("MESSAGE_TOO_LARGE", None)
            assert int(result.metadata["size"]) > int(result.metadata["limit"]) == LIMIT
            assert re.fullmatch(
                rf"the message has 5[0-9]{{6}} bytes; the limit is {LIMIT} bytes", result.message
            )


@pytest.fixture
def mixture(coffee) -> list[object]:
    """Two pictures above the limit, one of them unreadable, among those that are answered."""
    large, missing = b"x" * 5_500_000, coffee.with_name("missing.png")
    return [coffee, coffee, large, coffee.read_bytes(), missing, large, coffee]


@pytest.mark.parametrize("in_flight", [1, 2, 16])
def test_a_picture_above_the_limit_fails_alone(server, mixture, in_flight):
    with Client(server.address) as client:
        results = list(client.classify_many(mixture, in_flight=in_flight, cam=Cam()))
    assert isinstance(results.pop(4), ImageError)
    check_too_large(results, [True, True, False, True, False, True])


@pytest.mark.parametrize("in_flight", [1, 2, 16])
async def test_a_picture_above_the_limit_fails_alone_under_asyncio(server, mixture, in_flight):
    async with AsyncClient(server.address) as client:
        many = client.classify_many(mixture, in_flight=in_flight, cam=Cam())
        results = [result async for result in many]
    assert isinstance(results.pop(4), ImageError)
    check_too_large(results, [True, True, False, True, False, True])


def test_a_limit_that_is_known_costs_no_second_stream(server, coffee):
    streams, serve = [], server.service.classify_stream

    def classify_stream(requests, context):
        streams.append(context)
        return serve(requests, context)

    server.service.classify_stream = classify_stream
    with Client(server.address) as client:
        list(client.classify_many([coffee, *[b"x" * 5_500_000] * 4, coffee], in_flight=1))
    assert len(streams) == 2


async def test_a_single_picture_above_the_limit_says_so(server):
    with Client(server.address) as client, pytest.raises(ResourceExhaustedError) as raised:
        client.classify(b"x" * 5_500_000)
    check_too_large([raised.value], [False])
    async with AsyncClient(server.address) as client:
        with pytest.raises(ResourceExhaustedError) as raised:
            await client.classify(b"x" * 5_500_000)
    check_too_large([raised.value], [False])


def test_an_answer_above_the_limit_is_an_error_of_the_stream(server, monkeypatch):
    monkeypatch.setattr(channel, "MAX_MESSAGE_BYTES", 3000)
    small = np.zeros((8, 8, 3), dtype=np.uint8)
    with Client(server.address) as client, pytest.raises(ResourceExhaustedError) as raised:
        list(client.classify_many([small] * 3, feature_maps=["features.7"] * 9))
    assert raised.value.reason == "MESSAGE_TOO_LARGE"
    assert int(raised.value.metadata["size"]) > int(raised.value.metadata["limit"]) == 3000


@pytest.mark.parametrize("in_flight", [1, 2, 16])
async def test_an_error_stands_in_the_place_of_its_picture_under_asyncio(
    refusing, coffee, chelsea, in_flight
):
    images = [coffee, chelsea, coffee.with_name("missing.png"), coffee.parent, coffee]
    async with AsyncClient(refusing.address) as client:
        results = client.classify_many(images, in_flight=in_flight, cam=Cam())
        check_mixture([result async for result in results])


async def test_pictures_may_come_from_an_async_iterable(refusing, coffee, chelsea):
    async def images():
        yield coffee
        yield chelsea

    async with AsyncClient(refusing.address) as client:
        results = [type(result) async for result in client.classify_many(images())]
    assert results == [Classification, NotFoundError]


def test_answers_keep_the_order_of_the_pictures(server, coffee):
    data = coffee.read_bytes()

    def classify(request):
        return service.ClassifyResponse(model=str(len(request.encoded)))

    server.service.classify = classify
    sizes = [len(data) - k % 50 for k in range(300)]
    with Client(server.address) as client:
        results = client.classify_many((data[:size] for size in sizes), in_flight=7)
        assert [int(result.model) for result in results] == sizes


class Counted:
    """Pictures that count how many of them are alive beyond the results taken."""

    def __init__(self, data: bytes, number: int) -> None:
        self.data, self.number = data, number
        self.read = self.taken = self.most = 0

    def __iter__(self):
        for _ in range(self.number):
            self.read += 1
            self.most = max(self.most, self.read - self.taken)
            yield self.data


def test_no_more_pictures_are_held_than_in_flight(server, coffee):
    images = Counted(coffee.read_bytes(), 60)
    with Client(server.address) as client:
        for result in client.classify_many(images, in_flight=5):
            assert isinstance(result, Classification)
            images.taken += 1
    assert images.taken == 60
    # The sixth is read when the first answer is due, and sent when it has been taken.
    assert images.most == 6


async def test_no_more_pictures_are_held_than_in_flight_under_asyncio(server, coffee):
    images = Counted(coffee.read_bytes(), 60)
    async with AsyncClient(server.address) as client:
        async for result in client.classify_many(images, in_flight=5):
            assert isinstance(result, Classification)
            images.taken += 1
    assert images.taken == 60
    assert images.most == 6


async def test_a_stream_that_is_answered_ends_well(server, coffee):
    ended = []

    def classify_stream(requests, context):
        for request in requests:
            yield stream_answer(request, server.service.classify)
        ended.append(context.is_active())

    server.service.classify_stream = classify_stream
    with Client(server.address) as client:
        assert len(list(client.classify_many([coffee] * 3))) == 3
    async with AsyncClient(server.address) as client:
        assert len([x async for x in client.classify_many([coffee] * 3)]) == 3
    assert ended == [True, True]


def test_large_pictures_share_the_bytes_in_flight(server, coffee, monkeypatch):
    monkeypatch.setattr(_stream, "MAX_IN_FLIGHT_BYTES", 2 * coffee.stat().st_size)
    read = 0

    def images():
        nonlocal read
        for _ in range(10):
            read += 1
            yield coffee

    with Client(server.address) as client:
        results = client.classify_many(images(), in_flight=8)
        assert isinstance(next(results), Classification)
        assert read == 3
        assert len(list(results)) == 9


def test_unreadable_pictures_are_held_no_longer_than_others(server, tmp_path):
    read = 0

    def images():
        nonlocal read
        for number in range(1000):
            read += 1
            yield tmp_path / f"{number}.jpg"

    with Client(server.address) as client:
        results = client.classify_many(images(), in_flight=4)
        assert isinstance(next(results), ImageError)
        assert read == 5


def test_no_pictures_give_no_results(server):
    with Client(server.address) as client:
        assert list(client.classify_many([])) == []


def test_in_flight_is_at_least_one(server):
    with Client(server.address) as client, pytest.raises(ValueError, match="at least 1, not 0"):
        next(client.classify_many([], in_flight=0))


def test_what_the_pictures_raise_reaches_the_caller(server, coffee):
    def images():
        yield coffee
        raise LookupError("the folder went away")

    with Client(server.address) as client, pytest.raises(LookupError, match="went away"):
        list(client.classify_many(images()))


def test_an_error_of_the_stream_is_raised(server, coffee):
    def classify_stream(requests, context):
        yield service.ClassifyStreamResponse(
            request_id=next(requests).request_id, response=service.ClassifyResponse(model="pets")
        )
        context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    server.service.classify_stream = classify_stream
    with Client(server.address) as client:
        results = client.classify_many([coffee] * 3, in_flight=1)
        assert next(results).model == "pets"
        with pytest.raises(UnavailableError, match="going down"):
            next(results)


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ([], "before it had answered"),
        ([service.ClassifyStreamResponse(request_id="9")], "'9' where '0' was due"),
    ],
)
async def test_a_stream_that_breaks_its_promise_is_an_error(server, coffee, answers, complaint):
    def classify_stream(requests, context):
        next(requests)
        yield from answers

    server.service.classify_stream = classify_stream
    with Client(server.address) as client, pytest.raises(InternalError, match=complaint):
        next(client.classify_many([coffee]))
    async with AsyncClient(server.address) as client:
        with pytest.raises(InternalError, match=complaint):
            await anext(client.classify_many([coffee]))


@pytest.fixture
def silent(server):
    """The server, answering nothing, and an event that says when its stream has ended."""
    ended = threading.Event()

    def classify_stream(requests, context):
        context.add_callback(ended.set)
        ended.wait()
        yield from ()

    server.service.classify_stream = classify_stream
    return server, ended


def test_a_stream_that_stalls_is_given_up(silent, coffee):
    server, ended = silent
    with Client(server.address, timeout=0.3) as client:
        with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.3 s"):
            list(client.classify_many([coffee]))
        assert ended.wait(LIMIT_SECONDS)


async def test_a_stream_that_stalls_is_given_up_under_asyncio(silent, coffee):
    server, ended = silent
    async with AsyncClient(server.address, timeout=0.3) as client:
        with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.3 s"):
            await anext(client.classify_many([coffee]))
        assert ended.wait(LIMIT_SECONDS)


def test_slow_pictures_do_not_stall_a_stream(server, coffee):
    late = threading.Event()

    def images():
        yield coffee
        late.wait(3)
        yield coffee

    with Client(server.address, timeout=2) as client:
        assert len(list(client.classify_many(images(), in_flight=4))) == 2


def test_leaving_early_ends_the_stream_and_its_threads(server, coffee):
    ended = threading.Event()
    serve = server.service.classify_stream

    def classify_stream(requests, context):
        context.add_callback(ended.set)
        return serve(requests, context)

    server.service.classify_stream = classify_stream
    with Client(server.address) as client:
        for result in client.classify_many([coffee] * 100, in_flight=2):
            assert isinstance(result, Classification)
            break
        del result
        gc.collect()
        assert ended.wait(LIMIT_SECONDS)
    for thread in threading.enumerate():
        if thread.name == "foveate-watchdog":
            thread.join(LIMIT_SECONDS)
            assert not thread.is_alive()
