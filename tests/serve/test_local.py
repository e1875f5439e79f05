"""The services in the caller's process."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from google.rpc.code_pb2 import Code

from foveate.status import StatusError
from foveate.v1.classifier_service_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
    GetModelRequest,
    ListModelsRequest,
    RawImage,
)
from foveate_serve.local import LocalTransport

from ..waiting import LIMIT_SECONDS


@pytest.fixture
def transport(tmp_path: Path, write_bundle: Callable[..., Path]) -> Iterator[LocalTransport]:
    write_bundle()
    with LocalTransport(tmp_path / "repository") as transport:
        yield transport


def colour(red: int, green: int, blue: int) -> ClassifyRequest:
    pixels = np.full((8, 8, 3), (red, green, blue), dtype=np.uint8)
    return ClassifyRequest(raw=RawImage(height=8, width=8, channels=3, data=pixels.tobytes()))


def test_classifies(transport: LocalTransport) -> None:
    response = transport.classify(colour(0, 0, 255), timeout=10)
    assert response.predictions[0].label == "blue"


def test_raises_the_status_of_the_protocol(transport: LocalTransport) -> None:
    with pytest.raises(StatusError) as raised:
        transport.classify(ClassifyRequest(encoded=b"text"), timeout=10)
    assert raised.value.status.code == Code.INVALID_ARGUMENT
    assert raised.value.status.field_violations[0].field == "encoded"
    with pytest.raises(StatusError) as raised:
        transport.classify(colour(0, 0, 0), timeout=-1)
    assert raised.value.status.code == Code.DEADLINE_EXCEEDED


def test_a_stream_keeps_the_order_and_errors_belong_to_their_item(
    transport: LocalTransport,
) -> None:
    requests = [
        ClassifyStreamRequest(request_id=str(red), request=colour(red, 0, 0)) for red in range(100)
    ]
    requests[40].request.raw.height = 7
    responses = list(transport.classify_stream(requests))
    assert [response.request_id for response in responses] == [r.request_id for r in requests]
    assert responses[40].error.reason == "SHAPE_MISMATCH"
    logits = {
        int(r.request_id): max(p.logit for p in r.response.predictions if p.label == "red")
        for r in responses
        if r.HasField("response")
    }
    assert len(logits) == 99
    np.testing.assert_allclose(
        list(logits.values()), np.array(list(logits)) / 255 + 0.25, atol=1e-6
    )


def test_a_stream_may_be_left_early_and_reads_no_further_than_its_window(
    transport: LocalTransport,
) -> None:
    read = []

    def endless() -> Iterator[ClassifyStreamRequest]:
        while True:
            read.append(None)
            yield ClassifyStreamRequest(request=colour(1, 2, 3))

    stream = transport.classify_stream(endless())
    assert next(stream).HasField("response")
    stream.close()
    assert len(read) <= 40


def test_an_error_of_the_requests_is_raised_after_the_answers_before_it(
    transport: LocalTransport,
) -> None:
    def broken() -> Iterator[ClassifyStreamRequest]:
        yield ClassifyStreamRequest(request_id="1", request=colour(1, 2, 3))
        raise LookupError("no more pictures")

    stream = transport.classify_stream(broken())
    assert next(stream).request_id == "1"
    with pytest.raises(LookupError, match="no more pictures"):
        next(stream)


def test_a_stream_whose_requests_block_may_be_left_and_the_transport_closed(
    transport: LocalTransport,
) -> None:
    released = threading.Event()

    def blocking() -> Iterator[ClassifyStreamRequest]:
        yield ClassifyStreamRequest(request=colour(1, 2, 3))
        assert released.wait(LIMIT_SECONDS)
        yield ClassifyStreamRequest(request=colour(1, 2, 3))

    stream = transport.classify_stream(blocking())
    assert next(stream).HasField("response")
    stream.close()
    transport.close()
    released.set()


def test_describes_its_models(transport: LocalTransport) -> None:
    (summary,) = transport.list_models(ListModelsRequest(), 10).models
    assert (summary.name, summary.default_version) == ("colours", "1")
    model = transport.get_model(GetModelRequest(name="colours"), 10).model
    assert list(model.labels) == ["red", "green", "blue"]
    assert (model.backend, model.active_variant) == ("onnxruntime", "fp32")
    with pytest.raises(StatusError) as raised:
        transport.get_model(GetModelRequest(name="nothing"), 10)
    assert raised.value.status.code == Code.NOT_FOUND


def test_closing_twice_is_allowed_and_leaves_no_thread(transport: LocalTransport) -> None:
    transport.classify(colour(1, 1, 1), timeout=10)
    transport.close()
    transport.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("foveate-")]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LocalTransport(tmp_path / "nothing")
    assert not [t for t in threading.enumerate() if t.name.startswith("foveate-")]


def test_a_repository_at_a_url_is_fetched(
    tmp_path: Path, write_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    write_bundle()
    with LocalTransport((tmp_path / "repository").as_uri()) as transport:
        (model,) = transport.list_models(ListModelsRequest(), timeout=60).models
    assert model.name == "colours"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://key:s3cret@bucket/models", "REPOSITORY_INVALID"),
        ("file:///no/such/folder", "REPOSITORY_UNREADABLE"),
    ],
)
def test_a_url_that_cannot_be_read_is_told_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, reason: str
) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(StatusError) as caught:
        LocalTransport(url)
    assert caught.value.status.reason == reason
    assert "s3cret" not in caught.value.status.message
