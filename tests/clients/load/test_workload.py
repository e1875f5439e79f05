# ruff: noqa: N802 - the protocol names the methods

import io

import grpc.aio
import numpy as np
import pytest
from PIL import Image

from foveate.inference import open_inference_pb2 as oip
from foveate.inference.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from foveate_client._exceptions import FoveateError
from foveate_client.batch.sources import Passed
from foveate_client.load.driver import Driver, connect
from foveate_client.load.workload import (
    Mix,
    WorkloadError,
    foveate_workload,
    oip_workload,
    read_pictures,
)

from ...ports import listen


class Inference(GRPCInferenceServiceServicer):
    """Any model of the Open Inference Protocol: one input of the kind that a test wants."""

    def __init__(self) -> None:
        self.datatype, self.shape = "BYTES", [-1]
        self.asked: list[oip.ModelInferRequest] = []

    async def ModelMetadata(self, request, context):
        tensor = oip.ModelMetadataResponse.TensorMetadata
        return oip.ModelMetadataResponse(
            name=request.name,
            inputs=[tensor(name="x", datatype=self.datatype, shape=self.shape)],
            outputs=[tensor(name=name, datatype="FP32", shape=[-1, 5]) for name in ("y", "z")],
        )

    async def ModelInfer(self, request, context):
        self.asked.append(request)
        output = oip.ModelInferResponse.InferOutputTensor(name="y", datatype="FP32", shape=[1, 5])
        return oip.ModelInferResponse(model_name=request.model_name, outputs=[output])


@pytest.fixture
async def inference():
    server = grpc.aio.server()
    servicer = Inference()
    add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = listen(server)
    await server.start()
    async with connect(f"127.0.0.1:{port}", 1) as channels:
        yield servicer, channels
    await server.stop(grace=None)


async def workload(inference, picture, *, output=""):
    _, (channel,) = inference
    return await oip_workload(channel, [picture], model="any", output=output, timeout=10)


async def test_files_travel_as_bytes_with_their_length(inference, coffee):
    servicer, channels = inference
    found = await workload(inference, coffee.read_bytes())
    measured = await Driver(channels, found, timeout=10).closed(2, seconds=0.2, warmup=0.0)
    assert measured.requests == len(servicer.asked) - 1
    for request in servicer.asked:
        assert (request.model_name, request.outputs[0].name) == ("any", "y")
        assert list(request.inputs[0].shape) == [1]
        (content,) = request.raw_input_contents
        assert content[4:] == coffee.read_bytes()
        assert int.from_bytes(content[:4], "little") == len(content) - 4


@pytest.mark.parametrize(
    ("datatype", "shape", "sent"),
    [
        ("UINT8", [-1, 40, 60, 3], [1, 40, 60, 3]),
        ("UINT8", [3, 40, 60], [3, 40, 60]),
        ("FP32", [-1, 3, 40, 60], [1, 3, 40, 60]),
        ("FP32", [1, 40, 60, 1], [1, 40, 60, 1]),
    ],
)
async def test_pixels_travel_in_the_shape_of_the_input(inference, coffee, datatype, shape, sent):
    servicer, _ = inference
    servicer.datatype, servicer.shape = datatype, shape
    await workload(inference, coffee.read_bytes())
    (request,) = servicer.asked
    assert list(request.inputs[0].shape) == sent
    kind = {"UINT8": "u1", "FP32": "<f4"}[datatype]
    pixels = np.frombuffer(request.raw_input_contents[0], dtype=kind).reshape(sent)
    if datatype == "FP32":
        assert 0 <= pixels.min() <= pixels.max() <= 1
        pixels = pixels * 255
    channels_last = sent[-1] in (1, 3)
    pixels = pixels.reshape(sent[-3:])
    if not channels_last:
        pixels = pixels.transpose(1, 2, 0)
    with Image.open(coffee) as image:
        # 600 x 400 pixels: of the same proportions, hence only smaller.
        expected = np.asarray(
            image.convert("L" if pixels.shape[2] == 1 else "RGB").resize((60, 40))
        )
    assert np.abs(pixels - expected.reshape(pixels.shape).astype(float)).mean() < 1


@pytest.mark.parametrize(
    ("datatype", "shape", "message"),
    [
        ("INT64", [-1, 40, 60, 3], "the input 'x' is INT64"),
        ("UINT8", [-1, 5], r"UINT8 \[-1, 5\]"),
        ("UINT8", [-1, 40, 60, 4], "1 or 3 channels"),
        ("UINT8", [-1, -1, -1, 3], "states no height and width"),
    ],
)
async def test_an_input_that_takes_no_picture_is_told(inference, coffee, datatype, shape, message):
    servicer, _ = inference
    servicer.datatype, servicer.shape = datatype, shape
    with pytest.raises(WorkloadError, match=message):
        await workload(inference, coffee.read_bytes())


async def test_an_output_is_asked_for_by_name(inference, coffee):
    servicer, _ = inference
    await workload(inference, coffee.read_bytes(), output="z")
    assert servicer.asked[0].outputs[0].name == "z"
    with pytest.raises(WorkloadError, match="has no output 'w'; it has y, z"):
        await workload(inference, coffee.read_bytes(), output="w")


async def test_a_layer_that_is_not_there_is_told(served, coffee):
    async with connect(served.address, 1) as (channel,):
        with pytest.raises(WorkloadError, match="no layer 'middle'; it has first, last"):
            await foveate_workload(
                channel,
                [coffee.read_bytes()],
                Mix(feature_maps=1.0, layer="middle"),
                model="",
                timeout=10,
            )


def test_pictures_are_files_and_whole_folders(tmp_path, coffee, chelsea):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "cat.PNG").write_bytes(chelsea.read_bytes())
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "empty.png").write_bytes(b"")
    passed = Passed()
    found = read_pictures([coffee, tmp_path], passed)
    assert passed.counts == {"that are no pictures": 2, ".txt": 1}
    assert found == [coffee.read_bytes(), chelsea.read_bytes()]
    with Image.open(io.BytesIO(found[1])) as image:
        assert image.size == (451, 300)


def test_no_pictures_are_told(tmp_path):
    with pytest.raises(WorkloadError, match="there are no pictures in"):
        read_pictures([tmp_path], Passed())
    with pytest.raises(FoveateError, match=r"there is no .*missing\.png"):
        read_pictures([tmp_path / "missing.png"], Passed())
