"""ONNX files of other frameworks: each is built by the framework, and compared with it."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from foveate_export.commands import export
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.scores import score

from ...environment import make_environment

pytestmark = pytest.mark.network

SIZE, CLASSES = 64, 7

_TF2ONNX = """
import sys, numpy as np, tensorflow as tf, keras, tf2onnx
keras.utils.set_random_seed(0)
pictures = (np.load(sys.argv[1]) / np.float32(127.5) - 1).astype(np.float32)
shape = pictures.shape[1:]
{network}
spec = (tf.TensorSpec((None, *shape), tf.float32, name="input"),)
call = tf.function(lambda input: network(input, training=False))
tf2onnx.convert.from_function(call, input_signature=spec, opset=15, output_path=sys.argv[2])
np.save(sys.argv[3], network.predict(pictures, verbose=0))
"""

_PADDLE = """
import sys, numpy as np, paddle
from paddle.static import InputSpec
paddle.seed(0)
pictures = (np.load(sys.argv[1]) / np.float32(127.5) - 1).astype(np.float32).transpose(0, 3, 1, 2)
network = {network}
network.train()
for _ in range(4):  # running statistics of these pictures, in place of none
    network(paddle.to_tensor(pictures))
network.eval()
spec = InputSpec([-1, *pictures.shape[1:]], "float32", "x")
paddle.onnx.export(network, sys.argv[2].removesuffix(".onnx"), input_spec=[spec], opset_version=13)
np.save(sys.argv[3], network(paddle.to_tensor(pictures)).numpy())
"""

_ULTRALYTICS = """
import shutil, sys, numpy as np, torch
from ultralytics import YOLO
torch.manual_seed(0)
pictures = (np.load(sys.argv[1]) / np.float32(127.5) - 1).astype(np.float32).transpose(0, 3, 1, 2)
model = YOLO("yolov8n-cls.yaml")
model.model.model[-1].linear = torch.nn.Linear(model.model.model[-1].linear.in_features, 7)
model.model.train()
for _ in range(4):
    model.model(torch.from_numpy(pictures))
shutil.copy(model.export(format="onnx", imgsz=pictures.shape[2], dynamic=True), sys.argv[2])
with torch.no_grad():
    answer = model.model.float().cpu().eval()(torch.from_numpy(pictures))
np.save(sys.argv[3], (answer[0] if isinstance(answer, tuple) else answer).numpy())
"""

_SEQUENTIAL = """
layers = keras.layers
network = keras.Sequential([
    layers.Input(shape), layers.Conv2D(8, 3, padding="same", activation="relu"),
    layers.MaxPooling2D(4), layers.Flatten(), layers.Dense(20, activation="relu"), layers.Dense(7),
])
"""


@dataclass(frozen=True)
class Origin:
    """What builds a file, where, and the maps that its bundle offers."""

    packages: tuple[str, ...]
    script: str
    methods: frozenset[str]
    scores: str


POOLED = frozenset({"cam", "gradcam", "hirescam", "layercam"})
ORIGINS = {
    "keras": Origin(
        ("tensorflow-cpu", "tf2onnx", "onnx"),
        _TF2ONNX.format(
            network="network = keras.applications.MobileNetV2(\n"
            "    weights=None, input_shape=shape, classes=7)"
        ),
        POOLED,
        "softmax",
    ),
    "keras-flatten": Origin(
        ("tensorflow-cpu", "tf2onnx", "onnx"),
        _TF2ONNX.format(network=_SEQUENTIAL),
        POOLED - {"cam"},
        "logits",
    ),
    "paddle": Origin(
        ("paddlepaddle", "paddle2onnx", "setuptools"),
        _PADDLE.format(network="paddle.vision.models.resnet18(num_classes=7)"),
        POOLED,
        "logits",
    ),
    "ultralytics": Origin(
        ("ultralytics", "onnx", "onnxslim", "torch", "torchvision"), _ULTRALYTICS, POOLED, "softmax"
    ),
}


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ORIGINS)
def test_a_file_of_another_framework_gives_its_answers_and_has_maps(
    name: str, pictures: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = ORIGINS[name]
    python = make_environment(tmp_path / "environment", *origin.packages)
    np.save(tmp_path / "pictures.npy", pictures)
    file, answers = tmp_path / "network.onnx", tmp_path / "answers.npy"
    built = subprocess.run(
        [python, "-c", origin.script, tmp_path / "pictures.npy", file, answers],
        env={**os.environ, "HOME": str(tmp_path), "YOLO_OFFLINE": "true"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    spec = {"height": SIZE, "width": SIZE, "channels": 3, "resize": SIZE}
    spec |= {"interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "input.json").write_text(json.dumps(spec), encoding="utf-8")
    (tmp_path / "labels.txt").write_text("\n".join("abcdefg"), encoding="utf-8")
    arguments = [
        *(str(file), "--repository", str(tmp_path / "models"), "--name", "network"),
        *("--input-spec", str(tmp_path / "input.json"), "--labels", str(tmp_path / "labels.txt")),
    ]
    assert export.main(arguments) == 0, capsys.readouterr().err
    bundle = Bundle.open(tmp_path / "models" / "network" / "1")
    assert {cam.method for cam in bundle.manifest.cams} == origin.methods
    with create_runner(bundle, backend="onnxruntime") as runner:
        got = runner.run({"image": pictures}, ["logits"])["logits"]
    if origin.scores == "softmax":
        got = score(got, "softmax")
    np.testing.assert_allclose(got, np.load(answers), rtol=1e-3, atol=1e-4)


def test_a_classifier_of_tables_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = make_environment(tmp_path / "environment", "scikit-learn", "skl2onnx")
    script = """
import sys, numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
digits, labels = load_digits(return_X_y=True)
model = LogisticRegression(max_iter=50).fit(digits / 16, labels)
open(sys.argv[1], "wb").write(to_onnx(model, digits[:1].astype(np.float32)).SerializeToString())
"""
    file = tmp_path / "digits.onnx"
    subprocess.run([python, "-W", "ignore", "-c", script, file], check=True)
    (tmp_path / "input.json").write_text(
        '{"height": 8, "width": 8, "channels": 1, "resize": 8, "interpolation": "bilinear", '
        '"mean": [0], "std": [0.0625]}',
        encoding="utf-8",
    )
    arguments = ["--repository", str(tmp_path / "models"), "--name", "digits"]
    arguments += ["--input-spec", str(tmp_path / "input.json")]
    assert export.main([str(file), *arguments]) == 1
    said = capsys.readouterr().err
    assert "the input X is [None,64]; pictures have four axes" in said
    assert "Traceback" not in said
