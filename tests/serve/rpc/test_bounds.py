"""What a request holds beside its pictures is bounded before it is parsed."""

import pytest
from google.protobuf.message import DecodeError, Message

from foveate.inference.open_inference_pb2 import ModelInferRequest
from foveate.v1.classifier_service_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
    RawImage,
)
from foveate.v1.explanation_pb2 import CamOptions, FeatureMapOptions
from foveate.v1.repository_service_pb2 import SetVersionLabelsRequest
from foveate_serve.errors import InvalidRequestError
from foveate_serve.rpc.bounds import (
    MAX_FIELD_BYTES,
    MAX_ID_CHARACTERS,
    bounded,
    require_short,
)

PICTURE = bytes(200_000)
Infer = ModelInferRequest.InferInputTensor


def tensor(**contents: object) -> ModelInferRequest.InferInputTensor:
    found = Infer(name="image", datatype="BYTES", shape=[1])
    for name, values in contents.items():
        getattr(found.contents, name).extend(values)
    return found


@pytest.mark.parametrize(
    "message",
    [
        ClassifyRequest(encoded=PICTURE, model="m", top_k=3, cam=CamOptions(class_ids=[1, 2])),
        ClassifyRequest(raw=RawImage(height=1, width=2, channels=3, data=PICTURE)),
        ClassifyStreamRequest(request_id="7", request=ClassifyRequest(encoded=PICTURE)),
        ModelInferRequest(id="7", inputs=[tensor()], raw_input_contents=[PICTURE, PICTURE]),
        ModelInferRequest(inputs=[tensor(bytes_contents=[PICTURE] * 3)]),
        ModelInferRequest(inputs=[tensor(uint_contents=[255] * 600_000)]),
    ],
    ids=["encoded", "raw", "stream", "raw contents", "bytes contents", "uint contents"],
)
def test_pictures_of_any_size_are_read(message: Message) -> None:
    assert bounded(type(message))(message.SerializeToString()) == message


MANY = MAX_FIELD_BYTES + 1


@pytest.mark.parametrize(
    "message",
    [
        ClassifyRequest(encoded=PICTURE, cam=CamOptions(class_ids=[0] * MANY)),
        ClassifyRequest(encoded=PICTURE, cam=CamOptions(forms=[0] * MANY)),
        ClassifyRequest(feature_maps=[FeatureMapOptions(channels=[0] * MANY)]),
        ClassifyRequest(feature_maps=[FeatureMapOptions()] * (MANY)),
        ClassifyRequest(encoded=PICTURE, model="m" * MANY),
        ClassifyStreamRequest(request=ClassifyRequest(cam=CamOptions(class_ids=[0] * MANY))),
        ClassifyStreamRequest(request_id="x" * MANY),
        ModelInferRequest(outputs=[{"name": ""}] * (MANY)),
        ModelInferRequest(inputs=[Infer()] * (MANY)),
        ModelInferRequest(raw_input_contents=[b""] * (MANY)),
        ModelInferRequest(inputs=[tensor(int64_contents=[1] * MANY)]),
        ModelInferRequest(inputs=[tensor(uint_contents=[1] * (6 << 20))]),
        SetVersionLabelsRequest(name="m" * MANY),
    ],
)
def test_many_fields_are_refused(message: Message) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        bounded(type(message))(message.SerializeToString())
    assert raised.value.reason == "FIELDS_TOO_LARGE"


def test_numbers_in_parts_count_together() -> None:
    part = ModelInferRequest(inputs=[tensor(uint_contents=[1] * (3 << 20))]).SerializeToString()
    assert bounded(ModelInferRequest)(part)
    with pytest.raises(InvalidRequestError, match="more than 5242880 bytes"):
        bounded(ModelInferRequest)(part + part)


def test_fields_that_no_message_has_count_as_well() -> None:
    unknown = bytes((99 << 3 & 0x7F | 0x80, 99 >> 4, 0)) * MAX_FIELD_BYTES
    with pytest.raises(InvalidRequestError):
        bounded(ClassifyRequest)(ClassifyRequest(encoded=PICTURE).SerializeToString() + unknown)


@pytest.mark.parametrize(
    "tail",
    [b"\xff" * 11, b"\x0b", b"\x1a\xff\xff\xff\xff\x0f", b"\x1a", b"\x80"],
    ids=["endless number", "group", "length beyond the end", "no length", "half a tag"],
)
def test_bytes_that_are_no_message_are_left_to_the_parser(tail: bytes) -> None:
    message = ClassifyRequest(encoded=PICTURE).SerializeToString() + tail
    with pytest.raises(DecodeError):
        bounded(ClassifyRequest)(message)


def test_small_messages_are_read_as_they_are() -> None:
    message = ClassifyRequest(cam=CamOptions(class_ids=range(1000)))
    assert bounded(ClassifyRequest)(message.SerializeToString()) == message


def test_an_id_has_a_longest_length() -> None:
    require_short("x" * MAX_ID_CHARACTERS, "id")
    with pytest.raises(InvalidRequestError, match="1025 characters; the limit is 1024"):
        require_short("x" * (MAX_ID_CHARACTERS + 1), "id")
