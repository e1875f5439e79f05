"""The Open Inference Protocol, spoken by its reference client and by a hostile one."""

import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from skimage import data

from foveate.inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from foveate.v1.classifier_service_pb2 import ClassifyRequest
from foveate.v1.explanation_pb2 import CamOptions, FeatureMapOptions

from ..environment import make_environment

pytestmark = pytest.mark.network

HERE = Path(__file__).parent
MODEL = "efficientnet_lite0"
PHOTOGRAPHS = 3


@pytest.fixture(scope="module")
def client_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment with tritonclient; its Python."""
    folder = tmp_path_factory.mktemp("tritonclient") / "venv"
    return make_environment(folder, "--requirement", HERE / "open_inference_requirements.txt")


@pytest.fixture(scope="module")
def material(server, photographs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write photographs, and what our own service says of them."""
    folder = tmp_path_factory.mktemp("material")
    responses = []
    for index, photograph in enumerate(photographs[:PHOTOGRAPHS]):
        (folder / f"{index}.jpg").write_bytes(photograph.encoded)
        request = ClassifyRequest(
            model=MODEL,
            encoded=photograph.encoded,
            top_k=5,
            cam=CamOptions(top=2),
            feature_maps=[FeatureMapOptions(layer="blocks.4")],
        )
        responses.append(server.classifier.Classify(request, timeout=60))
    (features,) = responses[0].feature_maps
    shape = (len(features.channels), features.height, features.width)
    np.savez(
        folder / "expected.npz",
        best=[[p.class_id for p in response.predictions] for response in responses],
        logits=[[p.logit for p in response.predictions] for response in responses],
        cams=[
            [np.frombuffer(cam.values, "<f4").reshape(cam.height, cam.width) for cam in r.cams]
            for r in responses
        ],
        features=np.frombuffer(features.values, "<f4").reshape(shape),
    )
    return folder


def check(python: Path, address: str, folder: Path, name: str) -> None:
    command = [python, HERE / "open_inference_client.py", address, folder, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "metadata",
        "repository",
        "statistics",
        "raw_tensors",
        "encoded_files",
        "maps",
        "errors",
        "callbacks",
        "stream",
        "aio",
    ],
)
def test_tritonclient(server, client_python: Path, material: Path, name: str) -> None:
    check(client_python, server.address, material, name)


def test_tritonclient_loads_and_unloads(
    start: Callable, own_repository: Path, client_python: Path, material: Path
) -> None:
    check(client_python, start(own_repository, "--admin").address, material, "control")


def digit() -> ModelInferRequest:
    request = ModelInferRequest(model_name="lenet5", raw_input_contents=[bytes(28 * 28)])
    request.inputs.add(name="image", datatype="UINT8", shape=(1, 28, 28, 1))
    return request


def damaged(message: bytes, chance: random.Random) -> bytes:
    """Return the bytes of a message with some of them changed, cut off or repeated."""
    data = bytearray(message)
    for _ in range(chance.randint(1, 4)):
        # The structure is at the front; most of the rest is pixels.
        place = chance.randrange(min(len(data), 64))
        match chance.randrange(3):
            case 0:
                data[place] = chance.randrange(256)
            case 1:
                del data[place : place + chance.randint(1, 8)]
            case 2:
                data[place:place] = data[place : place + chance.randint(1, 8)]
    return bytes(data)


def test_damaged_messages_are_the_clients_fault(server) -> None:
    infer = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    chance = random.Random(0)  # noqa: S311 - repeatable, not secret
    message = digit().SerializeToString()
    found: set[grpc.StatusCode] = set()
    for _ in range(500):
        try:
            infer(damaged(message, chance), timeout=60)
        except grpc.RpcError as error:
            found.add(error.code())
    assert {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND} <= found
    assert found <= {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
    answer = ModelInferResponse.FromString(infer(message, timeout=60))
    assert list(answer.outputs[0].shape) == [1, 10]


@pytest.mark.parametrize("bad", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe"], ids=["wire", "utf-8"])
def test_a_stream_ends_at_bytes_that_are_no_message(server, bad: bytes, error_of) -> None:
    stream = server.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    answers = stream(iter([digit().SerializeToString(), bad]), timeout=60)
    assert next(answers)
    with pytest.raises(grpc.RpcError) as raised:
        next(answers)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_of(raised.value).reason == "MESSAGE_MALFORMED"


def test_the_page_prints_what_it_says(server, client_python: Path, tmp_path: Path) -> None:
    """The Python of the page is one program; numbers may differ."""
    page = (HERE.parents[1] / "docs/serving/open-inference.md").read_text(encoding="utf-8")
    source, output = (
        "".join(re.findall(rf"^```{kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
        for kind in ("python", "text")
    )
    Image.fromarray(data.coffee()).save(tmp_path / "coffee.jpg", quality=95)
    done = subprocess.run(
        [client_python, "-c", source.replace("localhost:50051", server.address)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert re.sub(r"\d+\.\d+", "N", done.stdout) == re.sub(r"\d+\.\d+", "N", output)
