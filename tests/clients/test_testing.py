from datetime import timedelta

import numpy as np
import pytest

from foveate_client import (
    AsyncClient,
    Cam,
    Classification,
    Client,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    Timing,
)
from foveate_client.testing import (
    AsyncFakeTransport,
    FakeTransport,
    call_error,
    classification,
    model,
)

ESPRESSO = classification({"cup": 0.1, "espresso": 0.9})
BUSY = call_error(
    "RESOURCE_EXHAUSTED",
    reason="QUEUE_FULL",
    message="the queue is full",
    metadata={"limit": "256"},
    retry_delay=timedelta(seconds=2),
)


def test_the_answer_is_the_result_and_the_request_is_kept(coffee):
    transport = FakeTransport(ESPRESSO)
    with Client(transport) as client:
        result = client.classify(coffee, top_k=2, cam=Cam(top=1))
    assert [(x.label, x.class_id) for x in result.predictions] == [("espresso", 1), ("cup", 0)]
    assert result.predictions[0].score == pytest.approx(0.9)
    (request,) = transport.requests
    assert (request.encoded, request.top_k, request.cam.top) == (coffee.read_bytes(), 2, 1)
    assert transport.closed


async def test_the_answer_is_the_result_under_asyncio(coffee):
    transport = AsyncFakeTransport(ESPRESSO)
    async with AsyncClient(transport) as client:
        result = await client.classify(coffee)
    assert result.predictions[0].label == "espresso"
    assert len(transport.requests) == 1
    assert transport.closed


def test_maps_and_times_come_through_as_they_were_given(coffee):
    cells = np.arange(-8, 41).reshape(7, 7)
    timing = Timing(
        decode=timedelta(milliseconds=3),
        queue=timedelta(0),
        infer=timedelta(milliseconds=12),
        encode=timedelta(milliseconds=1),
        total=timedelta(milliseconds=16),
        batch_size=4,
        backend="onnxruntime",
        device="cpu",
        variant="fp32",
    )
    given = classification(
        {"espresso": 0.9},
        cams={"espresso": cells, "lynx": -cells},
        feature_maps={"layer1": [cells, 2 * cells]},
        source_size=(600, 400),
        timing=timing,
    )
    with Client(FakeTransport(given)) as client:
        result = client.classify(coffee)
    assert result.timing == timing
    assert [(cam.label, cam.class_id, cam.maximum) for cam in result.cams] == [
        ("espresso", 0, 40),
        ("lynx", 1, 8),
    ]
    assert result.cams[0].array.tolist() == cells.tolist()
    assert result.cams[0].overlay(coffee).size == (600, 400)
    assert result.feature_maps[0].array.shape == (2, 7, 7)


def test_an_error_is_raised_and_has_its_details(coffee):
    with Client(FakeTransport(BUSY)) as client, pytest.raises(ResourceExhaustedError) as caught:
        client.classify(coffee)
    assert (caught.value.reason, str(caught.value)) == ("QUEUE_FULL", "the queue is full")
    assert caught.value.retry_delay == timedelta(seconds=2)
    assert caught.value.metadata == {"limit": "256"}


def test_a_function_answers_each_request_for_itself(coffee, chelsea):
    wrong = call_error("INVALID_ARGUMENT", fields={"top_k": "must be at least 1"})

    def answer(request):
        return wrong if request.encoded == chelsea.read_bytes() else ESPRESSO

    with Client(FakeTransport(answer)) as client:
        results = list(client.classify_many([coffee, chelsea, coffee], in_flight=2))
    assert [type(x) for x in results] == [Classification, InvalidArgumentError, Classification]
    assert results[1].field_violations[0].field == "top_k"


async def test_streams_are_answered_under_asyncio(coffee, chelsea):
    def answer(request):
        return BUSY if request.encoded == chelsea.read_bytes() else ESPRESSO

    transport = AsyncFakeTransport(answer)
    async with AsyncClient(transport) as client:
        results = [x async for x in client.classify_many([coffee, chelsea] * 20, in_flight=3)]
    assert [type(x) for x in results] == [Classification, ResourceExhaustedError] * 20
    assert len(transport.requests) == 40


async def test_a_stream_may_be_left_early_under_asyncio(coffee):
    transport = AsyncFakeTransport(ESPRESSO)
    async with AsyncClient(transport) as client:
        results = client.classify_many([coffee] * 20, in_flight=2)
        assert isinstance(await anext(results), Classification)
        await results.aclose()
    assert len(transport.requests) < 20


def test_a_fake_without_an_answer_says_so(coffee):
    with Client(FakeTransport()) as client, pytest.raises(AssertionError, match="no answer"):
        client.classify(coffee)


def test_models_are_listed_and_described():
    resnet = model(
        "resnet", "2", labels=["cat"], layers={"layer1": (64, 56, 56)}, cam_methods={"cam": (7, 7)}
    )
    lenet = model("lenet")
    with Client(FakeTransport(models=[resnet, lenet])) as client:
        assert [(x.name, x.default_version) for x in client.models()] == [
            ("lenet", "1"),
            ("resnet", "2"),
        ]
        assert client.model("resnet") == resnet
        with pytest.raises(NotFoundError, match="'vgg'"):
            client.model("vgg")


@pytest.mark.parametrize("score", [0.0, 1.5])
def test_a_score_is_a_probability(score):
    with pytest.raises(ValueError, match="score of cat must be above 0"):
        classification({"cat": score})


def test_a_map_has_its_axes():
    with pytest.raises(ValueError, match=r"\[height, width\], not \[2, 7, 7\]"):
        classification({"cat": 1}, cams={"cat": np.zeros((2, 7, 7))})


def test_an_unknown_code_is_refused():
    with pytest.raises(ValueError, match="TEAPOT"):
        call_error("TEAPOT")
