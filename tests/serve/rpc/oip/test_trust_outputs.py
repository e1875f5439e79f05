"""How far answers can be believed, as outputs of the Open Inference Protocol."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from foveate.inference import open_inference_pb2 as pb
from foveate.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.trust.answer import Assessor

from ....clients.test_trust import calibrated_repository
from ....colours import BIAS, SIZE
from ....conftest import served

NAMES = ("confidence", "prediction_set", "ood_percentile", "abstained")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated_repository(tmp_path_factory.mktemp("oip"))


@pytest.fixture(scope="module")
def stub(repository: Path) -> Iterator[GRPCInferenceServiceStub]:
    with served(repository) as address, grpc.insecure_channel(address) as channel:
        yield GRPCInferenceServiceStub(channel)


def colours() -> np.ndarray:
    levels = np.random.default_rng(3).integers(0, 200, (5, 1, 1, 3))
    return np.broadcast_to(levels, (5, SIZE, SIZE, 3)).astype(np.uint8)


def infer(
    stub: GRPCInferenceServiceStub, *names: str, model: str = "colours", **parameters: float
) -> dict[str, np.ndarray]:
    images = colours()
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    for name in names:
        request.outputs.add(name=name)
    for name, value in parameters.items():
        request.parameters[name].double_param = value
    response = stub.ModelInfer(request, timeout=30)
    return {
        output.name: np.frombuffer(raw, "<f4").reshape(output.shape)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


@pytest.mark.parametrize("coverage", [None, 0.95])
def test_the_outputs_are_those_of_the_calibration(
    stub: GRPCInferenceServiceStub, repository: Path, coverage: float | None
) -> None:
    parameters = {} if coverage is None else {"coverage": coverage}
    outputs = infer(stub, *(f"trust.{name}" for name in NAMES), **parameters)
    manifest = Bundle.open(repository / "colours" / "2").manifest
    trust = manifest.variants[0].trust
    assert trust is not None
    logits = colours()[:, 0, 0].astype(np.float32) / 255 + np.array(BIAS, np.float32)
    expected = Assessor(trust, manifest.policy, "softmax").assess(logits, coverage)
    assert outputs.keys() == {f"trust.{name}" for name in NAMES}
    for row, each in enumerate(expected):
        assert outputs["trust.confidence"][row] == pytest.approx(each.confidence, abs=1e-4)
        members = np.flatnonzero(outputs["trust.prediction_set"][row]).tolist()
        assert members == sorted(each.prediction_set)
        (percentile,) = outputs["trust.ood_percentile"][row]
        assert percentile == pytest.approx(each.ood_percentile, abs=0.1)
        assert outputs["trust.abstained"][row].tolist() == [float(each.abstained)]


def test_the_metadata_lists_them_where_the_model_was_calibrated(
    stub: GRPCInferenceServiceStub,
) -> None:
    listed = {}
    for model in ("colours", "plain"):
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=model), timeout=30)
        listed[model] = {x.name: list(x.shape) for x in metadata.outputs}
    assert listed["colours"]["trust.confidence"] == [-1, 3]
    assert listed["colours"]["trust.ood_percentile"] == [-1, 1]
    assert not any(name.startswith("trust.") for name in listed["plain"])


def test_what_cannot_be_said_is_refused(stub: GRPCInferenceServiceStub) -> None:
    cases = (
        ({"model": "plain"}, grpc.StatusCode.FAILED_PRECONDITION, "foveate calibrate BUNDLE"),
        ({"coverage": 1.5}, grpc.StatusCode.INVALID_ARGUMENT, "above 0 and below 1"),
        ({"coverage": 0.8}, grpc.StatusCode.INVALID_ARGUMENT, "was not calibrated"),
    )
    for options, code, said in cases:
        with pytest.raises(grpc.RpcError) as caught:
            infer(stub, "trust.ood_percentile", **options)
        assert caught.value.code() == code
        assert said in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        infer(stub, "trust.else")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
