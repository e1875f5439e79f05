"""Many requests of every kind at one time, each with its own answer."""

import grpc
import numpy as np
import pytest

from foveate.v1.classifier_service_pb2 import ClassifyRequest, ClassifyResponse, RawImage
from foveate.v1.explanation_pb2 import CamOptions, FeatureMapOptions

MODEL = "efficientnet_lite0"


def digit(value: int) -> ClassifyRequest:
    pixels = np.random.default_rng(value).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    raw = RawImage(height=28, width=28, channels=1, data=pixels.tobytes())
    return ClassifyRequest(model="lenet5", raw=raw)


def mixed_requests(photographs: list) -> list[ClassifyRequest]:
    encoded = [photograph.encoded for photograph in photographs[:6]]
    kinds = [
        {},
        {"top_k": 1},
        {"cam": CamOptions(top=1)},
        {"cam": CamOptions(top=3, class_ids=[7, 500])},
        {"feature_maps": [FeatureMapOptions(layer="blocks.6", channels=[0, 5])]},
        {"cam": CamOptions(), "feature_maps": [FeatureMapOptions(layer="blocks.4", channels=[1])]},
    ]
    requests = [
        ClassifyRequest(model=MODEL, encoded=picture, **kind)
        for picture in encoded
        for kind in kinds
    ]
    return requests + [digit(value) for value in range(60)]


def same(found: ClassifyResponse, expected: ClassifyResponse) -> None:
    assert found.model == expected.model
    assert [p.class_id for p in found.predictions] == [p.class_id for p in expected.predictions]
    # A batch of another size may add in another order.
    for one, other in zip(found.predictions, expected.predictions, strict=True):
        assert one.logit == pytest.approx(other.logit, abs=1e-3)
    assert [c.class_id for c in found.cams] == [c.class_id for c in expected.cams]
    assert [f.layer for f in found.feature_maps] == [f.layer for f in expected.feature_maps]
    for one, other in zip(
        [*found.cams, *found.feature_maps],
        [*expected.cams, *expected.feature_maps],
        strict=True,
    ):
        np.testing.assert_allclose(
            np.frombuffer(one.values, "<f4"), np.frombuffer(other.values, "<f4"), atol=1e-3
        )


def test_no_answer_goes_to_another_request(server, photographs: list) -> None:
    requests = mixed_requests(photographs)
    alone = [server.classifier.Classify(request, timeout=60) for request in requests]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(requests)), 3)).tolist()
    calls = [
        (index, server.classifier.Classify.future(requests[index], timeout=120)) for index in order
    ]
    for index, call in calls:
        same(call.result(), alone[index])


def test_bad_and_abandoned_requests_among_good_ones_change_nothing(
    server, photographs: list
) -> None:
    good = ClassifyRequest(model=MODEL, encoded=photographs[0].encoded)
    bad = ClassifyRequest(model=MODEL, encoded=photographs[0].encoded[:-5000])
    expected = server.classifier.Classify(good, timeout=60)
    calls = []
    for number in range(60):
        request = bad if number % 3 == 1 else good
        calls.append(server.classifier.Classify.future(request, timeout=60))
        if number % 3 == 2:
            calls[-1].cancel()
    for number, call in enumerate(calls):
        if number % 3 == 0:
            same(call.result(), expected)
        elif number % 3 == 1:
            assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        else:
            assert call.cancelled()


def test_a_full_queue_answers_that_it_is_full_and_when_to_come_again(
    start, digits_repository, error_of
) -> None:
    server = start(digits_repository, "--max-queue", "4", "--max-delay", "4", "--max-batch", "64")
    calls = [server.classifier.Classify.future(digit(value), timeout=60) for value in range(20)]
    errors = [call.exception() for call in calls]
    refused = [error for error in errors if error is not None]
    assert len(refused) == 16
    for error in refused:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = error_of(error)
        assert (status.reason, status.metadata["limit"]) == ("QUEUE_FULL", "4")
        assert status.retry_delay.total_seconds() > 0
