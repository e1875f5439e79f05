"""A bundle as a model of Triton: ONNX Runtime runs its graph on the image alone."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from foveate_export.commands import triton
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.folder import version_paths

from ...colours import write_colour_bundle
from ...environment import make_environment

PARSE = """\
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
print(json_format.MessageToJson(text_format.Parse(open(sys.argv[1]).read(), ModelConfig())))
"""


@pytest.fixture(scope="module")
def lite0(imagenet_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return EfficientNet-Lite0's bundle, made a model of Triton."""
    repository = tmp_path_factory.mktemp("triton") / "models"
    shutil.copytree(imagenet_repository, repository)
    path = repository / "efficientnet_lite0/1"
    assert triton.main([str(path), "--max-batch", "4"]) == 0
    return path


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of the default
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)


def test_the_image_alone_is_answered_with_the_maps_of_the_best_class(
    lite0: Path, pictures: np.ndarray
) -> None:
    original, ours = session(lite0 / "model.onnx"), session(lite0 / "triton.onnx")
    assert [value.name for value in ours.get_inputs()] == ["image"]
    names = [value.name for value in original.get_outputs()]
    best = np.full((3, 1), -1, dtype=np.int64)
    expected = original.run(names, {"image": pictures, "class_ids": best})
    for name, want, got in zip(names, expected, ours.run(names, {"image": pictures}), strict=True):
        np.testing.assert_array_equal(got, want, err_msg=name)


def test_classes_can_be_named_as_before(lite0: Path, pictures: np.ndarray) -> None:
    classes = np.array([[1, -2], [-1, 5], [999, 0]], dtype=np.int64)
    fed = {"image": pictures, "class_ids": classes}
    (want,) = session(lite0 / "model.onnx").run(["cam.gradcam"], fed)
    (got,) = session(lite0 / "triton.onnx").run(["cam.gradcam"], fed)
    assert got.shape == (3, 2, 7, 7)
    np.testing.assert_array_equal(got, want)


def test_the_weights_are_there_once_and_the_bundle_is_as_it_was(lite0: Path) -> None:
    assert (lite0 / "triton.onnx").stat().st_size < (lite0 / "model.onnx").stat().st_size / 100
    bundle = Bundle.open(lite0)
    assert version_paths(lite0.parents[1], "efficientnet_lite0") == {1: lite0}
    properties = session(lite0 / "triton.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(properties["foveate.labels"]) == list(bundle.labels)
    assert json.loads(properties["foveate.input"]) == bundle.manifest.input.model_dump(mode="json")
    assert properties["foveate.manifest.json.sha256"] == bundle.digest
    assert (lite0.parent / "labels.txt").read_bytes() == (lite0 / "labels.txt").read_bytes()


@pytest.mark.network
def test_the_configuration_is_one_of_tritons(lite0: Path, tmp_path: Path) -> None:
    requirements = Path(__file__).parents[2] / "integration/open_inference_requirements.txt"
    python = make_environment(tmp_path / "venv", "--requirement", requirements)
    done = subprocess.run(
        [python, "-c", PARSE, lite0.parent / "config.pbtxt"],
        check=True,
        capture_output=True,
        text=True,
    )
    config = json.loads(done.stdout)
    assert config["backend"] == "onnxruntime"
    assert (config["defaultModelFilename"], config["maxBatchSize"]) == ("triton.onnx", 4)
    image, classes = config["input"]
    assert image == {"name": "image", "dataType": "TYPE_UINT8", "dims": ["224", "224", "3"]}
    assert classes["optional"] is True
    # Every output as ONNX Runtime gives it, behind the batch.
    types = {"tensor(float)": "TYPE_FP32"}
    graph = session(lite0 / "triton.onnx")
    for value, named in zip(graph.get_outputs(), config["output"], strict=True):
        assert (value.name, types[value.type]) == (named["name"], named["dataType"])
        dims = [-1 if isinstance(length, str) else length for length in value.shape[1:]]
        assert [int(length) for length in named["dims"]] == dims


def test_a_variant_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_colour_bundle(tmp_path / "models")
    assert triton.main([str(path), "--variant", "int4"]) == 1
    assert capsys.readouterr().err == (
        "foveate triton: the bundle has no variant 'int4'; there are fp32\n"
    )
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["1"]
