"""`foveate export` and `foveate evaluate` as people type them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
import onnx
import pytest
import skimage
from numpy.typing import NDArray
from PIL import Image

from foveate_client import Cam, Client
from foveate_export.commands import _classifier, _existing
from foveate_export.commands import export as export_command
from foveate_export.publish.bundle import Exported
from foveate_export.sources import load_source
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands import evaluate
from foveate_runtime.options import parser_of
from foveate_train import checkpoint, registry
from foveate_train.data import mnist


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> int:
    """Cut each of MNIST's sets down to its first digits; how many they are."""
    load, count = mnist.load, 1000

    def load_few(*arguments: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        images, labels = load(*arguments)
        return images[:count], labels[:count]

    monkeypatch.setattr(mnist, "load", load_few)
    return count


def test_export_and_evaluate(
    few_digits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--repository", str(tmp_path), "--name", "digits", "--layers", "layer3, layer4"]
    code = export_command.main(
        ["foveate:convnet4", "--weights", "random:1", *arguments, "--data", "mnist", "--json"]
    )
    said = capsys.readouterr()
    assert code == 0
    result = json.loads(said.out)
    assert result["path"] == str(tmp_path / "digits" / "1")
    assert (result["name"], result["version"], result["note"]) == ("digits", 1, None)
    (variant,) = result["variants"]
    assert variant["name"] == "fp32"
    assert variant["parity"]["features"].keys() == {"layer3", "layer4"}
    assert variant["accuracy"]["images"] == few_digits
    assert "comparing with torch on 32 pictures" in said.err

    code = evaluate.main(
        ["--repository", str(tmp_path), "--model", "digits", "--data", "mnist", "--json"]
    )
    said = capsys.readouterr()
    assert code == 0
    scored = json.loads(said.out)
    # The export calibrated on the same pictures.
    measured = {"top1", "top5", "ece", "ece_calibrated", "sets"}
    assert scored.keys() >= measured
    assert {key: scored[key] for key in scored.keys() - measured} == {
        "model": "digits",
        "version": 1,
        "variant": "fp32",
        "backend": "onnxruntime",
        "device": "cpu",
        "data": "MNIST test set",
        "images": few_digits,
    }
    assert scored["top1"] == variant["accuracy"]["top1"]
    assert scored["top5"] == variant["accuracy"]["top5"]


def test_a_checkpoint_brings_what_training_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lenet5 = registry.create("foveate:lenet5", weights="random:5")
    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, lenet5, metrics={"test_accuracy": 0.125}, data_digest="d", seed=5)
    code = export_command.main(
        [str(folder), "--repository", str(tmp_path / "models"), "--name", "lenet"]
    )
    said = capsys.readouterr()
    assert code == 0
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'models' / 'lenet' / '1'}: 0.")
    assert re.fullmatch(r"fp32: 0\.[23] MB", lines[1])
    assert "on 32 pictures (MNIST test digits): logits " in lines[2]
    assert lines[2].endswith("top-1 agrees on 100.0%")
    assert "cam.gradcam" in lines[2]
    manifest = json.loads((tmp_path / "models" / "lenet" / "1" / "manifest.json").read_text())
    assert manifest["classifier"] == "foveate:lenet5"
    assert manifest["metadata"] == {
        "metrics.test_accuracy": "0.125",
        "data_digest": "d",
        "seed": "5",
    }
    assert load_source(str(folder)).classifier.labels == lenet5.labels


def test_layers_are_listed_with_the_default_ones_marked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert export_command.main(["foveate:convnet4", "--list-layers", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)
    assert [layer["layer"] for layer in layers if layer["default"]] == [
        "layer1",
        "layer2",
        "layer4",
    ]
    assert {
        "layer": "layer3.0",
        "type": "Conv2d",
        "channels": 128,
        "height": 7,
        "width": 7,
        "layout": "nchw",
        "default": False,
    } in layers

    assert export_command.main(["foveate:convnet4", "--list-layers"]) == 0
    said = capsys.readouterr()
    rows = [line.split() for line in said.out.splitlines()]
    assert ["layer2", "ConvBNReLU", "64", "14", "14", "nchw", "*"] in rows
    assert ["layer3", "ConvBNReLU", "128", "7", "7", "nchw"] in rows
    assert "left out" not in said.err


def test_what_is_no_layer_is_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vit = ["timm:test_vit", "--weights", "random:0", "--argument", "num_classes=3"]
    assert export_command.main([*vit, "--list-layers", "--json"]) == 0
    said = capsys.readouterr()
    layers = {layer["layer"]: layer for layer in json.loads(said.out)}
    assert {layers[f"blocks.{block}"]["layout"] for block in range(6)} == {"tokens(10, 10, 1)"}
    assert [layers["blocks.5"][key] for key in ("channels", "height", "width")] == [64, 10, 10]
    (line,) = [line for line in said.err.splitlines() if "left out" in line]
    count = int(line.split()[0])
    assert re.search(r"left out: \d+ \(part of attention, as queries and keys are\)", line)
    assert sum(map(int, re.findall(r"(\d+) \(", line))) == count > 0

    where = ["--repository", str(tmp_path / "models"), "--name", "vit"]
    assert export_command.main([*vit, *where, "--layers", "blocks.0.attn.qkv"]) == 2
    assert (
        "'blocks.0.attn.qkv' gives no feature map (part of attention, as queries and keys are); "
        "near it: blocks."
    ) in capsys.readouterr().err


def test_maps_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--repository", str(tmp_path), "--name", "bare"]
    network = ["foveate:lenet5", "--weights", "random:0"]
    assert export_command.main([*network, "--no-cams", *where, "--json"]) == 0
    bundle = Bundle.open(Path(json.loads(capsys.readouterr().out)["path"]))
    assert bundle.manifest.cams == ()
    assert bundle.manifest.features
    assert bundle.manifest.assumptions["cams"].endswith("exported with --no-cams")
    graph = onnx.load(bundle.path / "model.onnx").graph
    assert not [value.name for value in graph.output if value.name.startswith("cam.")]
    assert [value.name for value in graph.input] == ["image"]


@pytest.fixture
def empty_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder that holds nothing but an empty checkpoint's folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    return folder


WHERE = ["--repository", "models", "--name", "digits"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["foveate:convnet4"], 2, "--repository and --name"),
        (
            ["foveate:convnet4", *WHERE, "--variants", "fp32,int3"],
            2,
            "no variant int3; there are fp32, fp16",
        ),
        (["foveate:convnet4", *WHERE, "--layers", "layer9"], 2, "'layer9' gives no feature map"),
        (["foveate:convnet4", *WHERE, "--cam-layer", "fc"], 2, "'fc' gives no feature map"),
        (["foveate:convnet4", *WHERE, "--no-cams", "--cam-layer", "layer4"], 2, "--no-cams leaves"),
        (["foveate:convnet9", *WHERE], 2, "foveate:convnet4"),
        (["foveate:convnet4", *WHERE, "--argument", "poole=1"], 2, "'poole'"),
        (["foveate:convnet4", "--repository", "m", "--name", "a/b"], 2, "name 'a/b'"),
        (["foveate:convnet4", *WHERE, "--weights", "nowhere.pth"], 1, "nowhere.pth"),
        (["foveate:convnet4", *WHERE, "--parity-data", "."], 1, "holds no pictures"),
        (["foveate:convnet4", *WHERE, "--data", "nowhere"], 2, "nowhere: no such folder"),
        (["checkpoint", *WHERE, "--weights", "random:0"], 2, "brings its weights"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    empty_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert export_command.main(arguments) == code
    said = capsys.readouterr()
    assert said.out == ""
    last = said.err.splitlines()[-1]
    assert last.startswith("foveate export: ")
    assert message in last
    assert list(empty_checkpoint.parent.iterdir()) == [empty_checkpoint]


def test_an_existing_version_fails(
    convnet4_export: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = convnet4_export.path.parent.parent
    arguments = ["foveate:convnet4", "--repository", str(repository), "--name", "convnet4"]
    assert export_command.main([*arguments, "--version", "1"]) == 1
    assert "convnet4 has a version 1" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["0", "-1", "one"])
def test_a_version_is_a_number_from_one(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        export_command.main(["foveate:convnet4", *WHERE, "--version", version])
    assert caught.value.code == 2
    assert "--version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing"], "holds no model 'nothing'"),
        (["--model", "convnet4", "--version", "7"], "convnet4 has the versions 1, not 7"),
    ],
)
def test_evaluate_names_what_is_missing(
    convnet4_export: Exported,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    repository = convnet4_export.path.parent.parent
    code = evaluate.main(["--repository", str(repository), "--data", "mnist", *arguments])
    assert code == 2
    assert message in capsys.readouterr().err


def test_evaluate_takes_a_device(
    convnet4_export: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = convnet4_export.path.parent.parent
    arguments = ["--repository", str(repository), "--model", "convnet4", "--data", "mnist"]
    assert evaluate.main([*arguments, "--device", "toaster"]) == 1
    assert "no device 'toaster'" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--limit", "1", "--device", "cpu"]) == 0
    assert "fp32 on onnxruntime, cpu: top-1" in capsys.readouterr().out


def test_evaluate_refuses_a_bundle_with_a_changed_file(
    convnet4_export: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "digits" / "1"
    folder.mkdir(parents=True)
    for file in convnet4_export.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with (folder / "model.onnx").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00")
    code = evaluate.main(["--repository", str(tmp_path), "--model", "digits", "--data", "mnist"])
    assert code == 1
    assert "model.onnx: its SHA-256 is not the manifest's" in capsys.readouterr().err


PLAIN = """
from torch import nn

def network():
    conv, linear = nn.Conv2d({channels}, 4, 3), nn.Linear(4, 3)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
"""


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Export a network of three classes, with the labels given, as bytes of the file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = f"plain_{uuid4().hex}"

    def run(labels: bytes = b"cat\ndog\nfox\n", name: str = "plain", channels: int = 3) -> int:
        text = PLAIN.format(channels=channels)
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
        spec = {
            "height": 32,
            "width": 32,
            "channels": channels,
            "resize": 32,
            "interpolation": "bilinear",
            "mean": [0.5] * channels,
            "std": [0.25] * channels,
        }
        (tmp_path / "input.json").write_text(json.dumps(spec), encoding="utf-8-sig")
        (tmp_path / "labels.txt").write_bytes(labels)
        return export_command.main(
            [
                *("--name", name, "--repository", "models", "--module", f"{module}:network"),
                *("--input-spec", "input.json", "--labels", "labels.txt"),
            ]
        )

    return run


def test_a_network_of_four_channels_sees_alpha(plain: Callable[..., int]) -> None:
    assert plain(channels=4) == 0
    picture = Image.fromarray(skimage.data.astronaut()).convert("RGBA")
    picture.putalpha(Image.fromarray(skimage.data.astronaut()[..., 0]))
    parity = Bundle.open(Path("models/plain/1")).manifest.variants[0].parity
    assert parity.data == "scikit-image photographs"
    with Client.local("models") as client:
        alpha, opaque = (
            client.classify(each, cam=Cam(class_ids=[0]))
            for each in (picture, picture.convert("RGB"))
        )
    assert alpha.predictions[0].logit != opaque.predictions[0].logit
    assert alpha.cams[0].overlay(picture).size == picture.size


@pytest.mark.parametrize(
    "labels",
    [
        "cat\ndog\nfox",
        "\ufeffcat\ndog\nfox\n",
        "cat\r\ndog\r\nfox\r\n",
        "cat\rdog\rfox\r",
        " cat\ndog  \nfox\n\n\n",
    ],
)
def test_labels_are_read_as_every_system_writes_them(
    plain: Callable[..., int], labels: str
) -> None:
    assert plain(labels.encode()) == 0
    assert Bundle.open(Path("models/plain/1")).labels == ("cat", "dog", "fox")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (b"", "labels.txt: holds no labels"),
        (b"\n\n", "labels.txt: holds no labels"),
        (b"cat\n\ndog\nfox\n", "labels.txt: line 2 is empty"),
        (b"cat\n0\tdog\nfox\n", "labels.txt: line 2 holds the character U+0009"),
        ("cat\ndog\u2028fox\n".encode(), "labels.txt: line 2 holds the character U+2028"),
        (b"cat\ndog\x0cfox\n", "labels.txt: line 2 holds the character U+000C"),
        ("cat\n\ufeffdog\nfox".encode(), "labels.txt: line 2 holds the character U+FEFF"),
        ("cat\ndog\nfox".encode("utf-16"), "labels.txt: not UTF-8 text; save it as UTF-8"),
        ("cat\ndog\nfox".encode("utf-16-le"), "labels.txt: line 1 holds the character U+0000"),
    ],
)
def test_labels_that_are_not_one_a_line_are_refused(
    plain: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    labels: bytes,
    message: str,
) -> None:
    assert plain(labels) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"foveate export: {message}")


def test_a_label_of_several_classes_is_told(
    plain: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain(b"crane\nowl\ncrane\n") == 0
    told = "foveate export: warning: 'crane' names the classes 0, 2"
    assert told in capsys.readouterr().err.splitlines()
    assert Bundle.open(Path("models/plain/1")).labels == ("crane", "owl", "crane")


def test_a_name_that_ends_in_onnx_is_a_name(plain: Callable[..., int]) -> None:
    assert plain(name="plain.onnx") == 0
    assert Bundle.open(Path("models/plain.onnx/1")).manifest.classifier.startswith("plain_")


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        (["net.onnx", "--name", "m"], "net.onnx"),
        (["--name", "a.onnx", "--json", "resnet"], "resnet"),
        (["--name=a.onnx", "--tensorrt", "net.onnx"], "net.onnx"),
        (["--list", "net.onnx"], "net.onnx"),
        (["--layers", "a,b", "-h"], None),
        (["--name", "a", "--", "net.onnx"], "net.onnx"),
        (["--module", "plain:net", "--name", "resnet.onnx"], None),
    ],
)
def test_only_the_source_is_no_option(arguments: list[str], source: str | None) -> None:
    assert export_command.find_source(arguments) == source


def test_every_option_without_a_value_is_known() -> None:
    flags = {
        option
        for command in (_classifier, _existing)
        for action in parser_of(
            command.Options, prog=command.PROG, description="", epilog=""
        )._actions
        if action.nargs == 0
        for option in action.option_strings
    }
    assert flags == {"-h", *export_command.FLAGS}
