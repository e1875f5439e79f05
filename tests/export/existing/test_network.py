"""Heads of ONNX files that torch differentiates: the maps are those of the network behind."""

import json
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torchvision.ops import Permute

from foveate_export.commands import _differentiated, _existing
from foveate_export.commands import export as export_command
from foveate_export.errors import ParityError
from foveate_export.pictures import shipped
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.commands import verify

SPEC = InputSpec(
    height=48,
    width=40,
    channels=3,
    resize=48,
    interpolation="bilinear",
    mean=(0.5, 0.4, 0.3),
    std=(0.25, 0.2, 0.25),
)
LABELS = ("a", "b", "c", "d", "e")


class Gate(nn.Module):
    """Squeeze and excitation, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.less, self.more = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)

    def forward(self, maps: Tensor) -> Tensor:
        share = self.more(self.less(maps.mean((2, 3), keepdim=True)).relu())
        return maps * nn.functional.hardsigmoid(share)


class Network(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish())
        self.last = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.gate = Gate() if kind == "gated" else nn.Identity()
        flat = 12 * 6 * 5 if kind == "flattened" else 12
        self.pool = nn.MaxPool2d(2) if kind == "flattened" else nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(flat, 20), nn.Hardswish(), nn.Linear(20, 5)
        )
        if kind == "normalised":  # as in ConvNeXt
            self.head = nn.Sequential(nn.Flatten(), nn.LayerNorm(12, 1e-3), nn.Linear(12, 5))
        if kind == "normalised last":  # as timm's ConvNeXt: the norm takes [N, 1, 1, C]
            self.head = nn.Sequential(
                Permute([0, 2, 3, 1]), nn.LayerNorm(12, 1e-3), Permute([0, 3, 1, 2]),
                nn.Flatten(), nn.Linear(12, 5),
            )  # fmt: skip
            nn.init.uniform_(self.head[1].bias)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.gate(self.last(self.first(pixels)))
        logits: Tensor = self.head(self.pool(maps))
        return logits.softmax(1) if self.kind == "softmax" else logits


def network(kind: str) -> Network:
    torch.manual_seed(3)
    made = Network(kind)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return made.eval()


class ChannelsLast(nn.Module):
    """Takes blue, green, red, [N, H, W, C]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: Tensor) -> Tensor:
        output: Tensor = self.module(pixels.permute(0, 3, 1, 2).flip(1))
        return output


def write(module: nn.Module, path: Path, shape: tuple[int, ...], *, traced: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (torch.zeros(shape),), path, dynamo=traced, verbose=False,
            **({} if traced else {"opset_version": 17}),
        )  # fmt: skip


def pixels_of(images: np.ndarray) -> Tensor:
    scaled = (images / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).astype(np.float32))


def by_autograd(module: Network, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return HiResCAM of the last maps, [N, K, h, w], of the network itself."""
    maps = module.gate(module.last(module.first(pixels_of(images))))
    # Maxima are maps of their own; averages are not.
    flattened = module.kind == "flattened"
    maps = (module.pool(maps) if flattened else maps).detach().requires_grad_()
    logits = module.head(maps if flattened else module.pool(maps))
    found = []
    for column in torch.from_numpy(classes).T:
        (gradient,) = torch.autograd.grad(
            logits.gather(1, column[:, None]).sum(), maps, retain_graph=True
        )
        found.append((gradient * maps.detach()).sum(1))
    return torch.stack(found, 1).numpy()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("input.json").write_text(SPEC.model_dump_json(), encoding="utf-8")
    Path("labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    return tmp_path


def export(path: str, *options: str) -> int:
    files = ["--input-spec", "input.json", "--labels", "labels.txt"]
    return export_command.main(
        [path, *files, "--repository", "models", "--name", "m", "--json", *options]
    )


@pytest.mark.parametrize(
    ("kind", "traced", "turned"),
    [
        ("flattened", False, False),
        ("gated", True, False),
        ("softmax", False, False),
        ("hidden", False, True),
        ("normalised", False, False),
        ("normalised", True, False),
        ("normalised last", False, False),
    ],
)
def test_the_maps_are_those_of_the_network_behind_the_file(
    *, kind: str, traced: bool, turned: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = network(kind)
    size = (SPEC.height, SPEC.width)
    shape = (1, *size, 3) if turned else (1, 3, *size)
    write(ChannelsLast(module) if turned else module, folder / "net.onnx", shape, traced=traced)
    options = ["--bgr", "--layout", "nhwc"] if turned else []
    if kind == "flattened":
        # As --list-layers calls it.
        options = ["--layers", "/last/last.1/Relu"]
    assert export("net.onnx", *options) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["note"] is None
    bundle = Bundle.open(folder / "models" / "m" / "1")
    closed = ["cam"] if kind.startswith("normalised") else []
    methods = [cam.method for cam in bundle.manifest.cams]
    assert methods == [*closed, "gradcam", "hirescam", "layercam"]
    assert bundle.manifest.assumptions["network"].startswith("run in torch; its outputs differ")
    layers = [feature.layer for feature in bundle.manifest.features]
    assert layers == ["/last/last_1/Relu"] if kind == "flattened" else layers
    images = shipped(SPEC).images
    classes = np.tile(np.array([[3, 0, 4]]), (len(images), 1))
    with create_runner(bundle, backend="onnxruntime") as runner:
        got = runner.run({"image": images, "class_ids": classes}, ["logits", "cam.hirescam"])
    expected = by_autograd(module, images, classes)
    largest = np.abs(expected).max()
    assert got["cam.hirescam"].shape == expected.shape
    assert np.abs(got["cam.hirescam"] - expected).max() <= 1e-4 * largest
    with torch.no_grad():
        logits = module.head(module.pool(module.gate(module.last(module.first(pixels_of(images))))))
    assert np.abs(got["logits"] - logits.numpy()).max() <= 1e-4 * float(logits.abs().max())
    assert verify.main([str(folder / "models" / "m" / "1")]) == 0


def test_without_torch_the_bundle_has_no_maps_and_says_what_brings_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> object:
        if name.endswith("_differentiated"):
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return import_module(name)

    monkeypatch.setattr(_existing, "import_module", missing)
    write(network("hidden"), folder / "net.onnx", (1, 3, SPEC.height, SPEC.width), traced=False)
    assert export("net.onnx") == 0
    note = json.loads(capsys.readouterr().out)["note"]
    assert note.startswith("no class activation maps: ")
    assert note.endswith('other heads need PyTorch: pip install "foveate-export[torch]"')
    assert Bundle.open(folder / "models" / "m" / "1").manifest.cams == ()


def test_a_graph_that_differs_from_torch_is_left_for_one_without_maps(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **more: object) -> None:
        raise ParityError("fp32: cam.gradcam differs")

    monkeypatch.setattr(_differentiated, "export", refuse)
    write(network("hidden"), folder / "net.onnx", (1, 3, SPEC.height, SPEC.width), traced=False)
    assert export("net.onnx") == 0
    note = json.loads(capsys.readouterr().out)["note"]
    assert note.endswith("in torch, fp32: cam.gradcam differs")
    assert Bundle.open(folder / "models" / "m" / "1").manifest.cams == ()


def test_a_version_that_is_taken_is_refused_as_ever(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(network("hidden"), folder / "net.onnx", (1, 3, SPEC.height, SPEC.width), traced=False)
    (folder / "models" / "m" / "3").mkdir(parents=True)
    assert export("net.onnx", "--version", "3") == 1
    assert "m has a version 3" in capsys.readouterr().err.splitlines()[-1]


def node(kind: str, takes: str, gives: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(kind, takes.split(), gives.split(), **attributes)


def by_hand(path: Path, operator: str) -> None:
    draws = np.random.default_rng(0)
    weights = {"w": draws.normal(size=(6, 3, 3, 3)), "fc": draws.normal(size=(6, 5))}
    nodes = [
        node("Conv", "x w", "m", name="conv"),
        node("Relu", "m", "r", name="relu"),
        node("MaxPool", "r", "p", kernel_shape=[46, 38]),
        node("Flatten", "p", "f"),
        node(operator, "f", "g"),
        node("MatMul", "g fc", "y"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 48, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def test_an_operator_that_torch_has_not_here_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_hand(folder / "net.onnx", "Asinh")
    assert export("net.onnx") == 0, capsys.readouterr().err
    note = json.loads(capsys.readouterr().out)["note"]
    assert "in torch, the node g (Asinh): torch has no such operator here" in note
    manifest = Bundle.open(folder / "models" / "m" / "1").manifest
    assert manifest.cams == ()
    assert [feature.layer for feature in manifest.features] == ["relu"]
