"""The pages about exporting, done as they say."""

import argparse
import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from skimage import data

from foveate_export.commands import export
from foveate_export.graph.vjp.rules import RULES
from foveate_export.sources import load_function
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands import evaluate
from foveate_train import registry

PAGES = Path(__file__).parents[2] / "docs" / "export"


@pytest.fixture
def own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write the files of the page into an empty folder, go there, and return the command."""
    page = (PAGES / "bring-your-own.md").read_text(encoding="utf-8")
    files = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", page, re.DOTALL)
    named = {name for name, _ in files}
    assert named == {"shapes.py", "input.json", "levels.json", "labels.txt", "labels.csv"}
    for name, text in files:
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"<!-- run -->\n```sh\n(.*?)```", page, re.DOTALL)
    return command.replace("\\\n", " ")


def test_a_network_of_ones_own_with_a_head_of_its_own(
    own_network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    foveate, subcommand, *arguments = shlex.split(own_network)
    assert (foveate, subcommand) == ("foveate", "export")
    assert export.main(arguments) == 0, capsys.readouterr().err
    bundle = Bundle.open(Path("models/shapes/1"))
    assert bundle.labels == ("circle", "square", "triangle")
    assert bundle.manifest.classifier == "shapes:network"
    assert [(cam.method, cam.layer, cam.height) for cam in bundle.manifest.cams] == [
        (method, "features", 12) for method in ("gradcam", "hirescam", "layercam")
    ]

    listing = [*arguments[:6], "--list-layers", "--json"]
    assert export.main(listing) == 0
    layers = json.loads(capsys.readouterr().out.partition("[")[2].join(["[", ""]))
    assert "largest" in {layer["layer"] for layer in layers}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--module", "shapes"], "is not of the form package.module:function"),
        (["--module", "shapez:network"], "no module 'shapez'"),
        (["--module", "shapes:nothing"], "shapes has no function 'nothing'"),
        (["--module", "shapes:network"], "--input-spec and --labels say how"),
        (["--module", "builtins:list"], "returns list, not an nn.Module"),
        (["--module", "shapes:network", "--labels", "none.txt", "--input-spec", "input.json"],
         "none.txt: No such file"),
        (["--module", "shapes:network", "--labels", "labels.txt", "--input-spec", "labels.txt"],
         "labels.txt: Invalid JSON"),
        (["--module", "shapes:network", "--weights", "random:0"], "--weights and --argument are"),
        (["labels.txt", "--labels", "labels.txt"], "labels.txt is no ONNX file by its name"),
        (["shapes", "--module", "shapes:network"], "a source or --module, and not both"),
        ([], "a source or --module"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_said_in_a_line(
    own_network: str,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert export.main([*arguments, "--list-layers"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("foveate export: ")
    assert message in last


def test_an_onnx_file(own_network: str, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    weights = {
        "kernel": generator.normal(size=(8, 3, 5, 5)).astype(np.float32),
        "rows": generator.normal(size=(3, 8)).astype(np.float32),
        "bias": generator.normal(size=3).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["scores"], strides=[2, 2]),
            helper.make_node("Relu", ["scores"], ["maps"]),
            helper.make_node("GlobalAveragePool", ["maps"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("Gemm", ["flat", "rows", "bias"], ["y"], transB=1),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 56, 56])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), "classifier.onnx")

    page = (PAGES / "bring-your-own.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"<!-- run: onnx -->\n```sh\n(.*?)```", page, re.DOTALL)
    foveate, subcommand, *arguments = shlex.split(command.replace("\\\n", " "))
    assert (foveate, subcommand) == ("foveate", "export")
    assert export.main(arguments) == 0, capsys.readouterr().err
    manifest = Bundle.open(Path("models/classifier/1")).manifest
    assert [cam.method for cam in manifest.cams] == ["cam", "gradcam", "hirescam", "layercam"]
    assert [feature.layer for feature in manifest.features] == ["maps"]


def test_weights_that_a_training_script_left(
    own_network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    three = registry.create("torchvision:squeezenet1_1", weights="random:1", num_classes=3)
    state = {f"module.{key}": value for key, value in three.module.state_dict().items()}
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, "best.pth")
    page = (PAGES / "bring-your-own.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"<!-- run: weights -->\n```sh\n(.*?)```", page, re.DOTALL)
    foveate, subcommand, *arguments = shlex.split(command.replace("\\\n", " "))
    assert (foveate, subcommand) == ("foveate", "export")
    assert export.main(arguments) == 0, capsys.readouterr().err
    bundle = Bundle.open(Path("models/mine/1"))
    assert bundle.labels == ("circle", "square", "triangle")
    said = bundle.manifest.assumptions
    assert said["weights"] == "best.pth, under model, the prefix 'module.' taken off"
    assert f"weights: {said['weights']}\n" in page


def test_a_folder_of_transformers(own_network: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("circle", "square", "triangle")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    config = transformers.ResNetConfig(id2label=dict(enumerate(names)), **sizes)
    transformers.ResNetForImageClassification(config).save_pretrained("my-resnet")
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 64})
    processor.save_pretrained("my-resnet")
    page = (PAGES / "bring-your-own.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"<!-- run: folder -->\n```sh\n(.*?)```", page, re.DOTALL)
    foveate, subcommand, *arguments = shlex.split(command)
    assert (foveate, subcommand) == ("foveate", "export")
    assert export.main(arguments) == 0, capsys.readouterr().err
    bundle = Bundle.open(Path("models/my-resnet/1"))
    assert (bundle.labels, bundle.manifest.input.resize) == (names, 73)


def _service_file(path: str, layout: str, *, mapped: bool) -> None:
    """Write a small classifier as a converter does: channels last, or with a map of its scores."""
    generator = np.random.default_rng(0)
    weights = {
        "kernel": generator.normal(size=(8, 3, 5, 5)).astype(np.float32) / 99,
        "rows": generator.normal(size=(8, 3)).astype(np.float32),
    }
    nhwc = layout == "nhwc"
    first = [helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2])] if nhwc else []
    nodes = [
        *first,
        helper.make_node("Conv", ["first" if nhwc else "x", "kernel"], ["maps"], strides=[2, 2]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "rows"], ["z"]),
        helper.make_node("Softmax", ["z"], ["y"], axis=-1),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
    if mapped:
        labels = [b"bolt", b"nut", b"washer"]
        zipmap = helper.make_node(
            "ZipMap", ["y"], ["loss"], domain="ai.onnx.ml", classlabels_strings=labels
        )
        scores = helper.make_map_type_proto(
            TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
        )
        best = helper.make_node("ArgMax", ["y"], ["classLabel"], axis=1)
        nodes += [best, zipmap]
        outputs = [
            helper.make_tensor_value_info("classLabel", TensorProto.INT64, ["n", 1]),
            helper.make_value_info("loss", helper.make_sequence_type_proto(scores)),
        ]
    shape = [1, 56, 56, 3] if nhwc else ["n", 3, 56, 56]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def test_six_origins(own_network: str, capsys: pytest.CaptureFixture[str]) -> None:
    three = registry.create("timm:test_resnet", weights="random:1", num_classes=3).module
    state = three.state_dict()
    lightning = {f"model.{key}": value for key, value in state.items()}
    torch.save({"state_dict": lightning, "pytorch-lightning_version": "2.5.0"}, "last.ckpt")
    args = argparse.Namespace(model="test_resnet", lr=0.1)
    torch.save(
        {"arch": "test_resnet", "state_dict": {}, "state_dict_ema": state, "args": args},
        "model_best.pth.tar",
    )
    names = ["circle", "square", "triangle"]
    timm.models.save_for_hf(three, "my-timm", model_config={"label_names": names})
    _service_file("keras.onnx", "nhwc", mapped=False)
    _service_file("custom.onnx", "nchw", mapped=True)
    _service_file("classifier.onnx", "nchw", mapped=False)
    page = (PAGES / "bring-your-own.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- run: origins -->\n```sh\n(.*?)```", page, re.DOTALL)
    commands = [shlex.split(line) for line in block.splitlines() if not line.startswith("#")]
    assert len(commands) == 6
    for foveate, subcommand, *arguments in commands:
        assert (foveate, subcommand) == ("foveate", "export")
        assert export.main(arguments) == 0, capsys.readouterr().err
        bundle = Bundle.open(Path("models") / arguments[-1] / "1")
        said = bundle.manifest.assumptions
        assert {cam.method for cam in bundle.manifest.cams} >= {"cam", "gradcam"}
        custom = arguments[-1] == "custom"
        assert bundle.labels == (("bolt", "nut", "washer") if custom else tuple(names))
        if arguments[-1] == "lightning":
            assert said["weights"] == "last.ckpt, under state_dict, the prefix 'model.' taken off"
        if arguments[-1] == "timm":
            assert "averaged weights (EMA)" in said["weights"]
        if arguments[-1] == "keras":
            assert said["layout"].startswith("nhwc")


def test_labels_by_themselves(own_network: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (PAGES / "bring-your-own.md").read_text(encoding="utf-8")
    found = re.findall(r"<!-- run: scores -->\n```sh\n(.*?)```", page, re.DOTALL)
    commands = [shlex.split(command.replace("\\\n", " ")) for command in found]
    assert [command[:2] for command in commands] == [["foveate", "export"], ["foveate", "evaluate"]]
    assert export.main(commands[0][2:]) == 0, capsys.readouterr().err
    manifest = Bundle.open(Path("models/shapes/1")).manifest
    assert manifest.scores == "sigmoid"
    assert f"\nscores: {manifest.assumptions['scores']}\n" in capsys.readouterr().out
    for name in ("signs.jpg", "sky.jpg"):
        Image.fromarray(data.coffee()).save(name)
    assert evaluate.main(commands[1][2:]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "mean average precision" in said
    assert "of 2 pictures (labels.csv)" in said


def test_a_classifier_brings_all_that_is_needed(own_network: str) -> None:
    Path("whole.py").write_text(
        "from pathlib import Path\n"
        "from foveate_export.sources import load_function\n"
        "def classifier():\n"
        "    files = {'input_spec': Path('input.json'), 'labels': Path('labels.txt')}\n"
        "    return load_function('shapes:network', **files).classifier\n",
        encoding="utf-8",
    )
    classifier = load_function("whole:classifier").classifier
    assert (classifier.input.resize, len(classifier.labels)) == (64, 3)
    assert not classifier.module.training


def test_the_page_names_the_methods_and_the_rules_that_there_are() -> None:
    page = (PAGES / "explanations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `cam\.(\w+)`", page, re.MULTILINE)) == {
        "cam", "gradcam", "hirescam", "layercam", "relevance", "rollout", "legrad",
    }  # fmt: skip
    assert {"linear", "conv2d", "max_pool2d", "cat", "add"} <= RULES.keys()
