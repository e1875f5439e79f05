"""Classifiers that are ONNX files already: edited, compared with the file, and refused."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from foveate_export.commands import export as export_command
from foveate_export.errors import ExportError, UsageError
from foveate_export.existing import Existing, export_existing, open_existing
from foveate_export.pictures import Pictures, shipped
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.commands import verify

SPEC = InputSpec(
    height=32,
    width=40,
    channels=3,
    resize=40,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
LABELS = ("cat", "coffee", "person", "rocket", "wheel")
POOLED_LINEAR = ["cam", "gradcam", "hirescam", "layercam"]


class Small(nn.Module):
    """Two convolutions, average pooling and a linear layer."""

    def __init__(self, head: str = "linear") -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2), nn.ReLU())
        self.head = head
        self.fc = nn.Linear(12, len(LABELS))
        self.conv = nn.Conv2d(12, len(LABELS), 1)
        self.flat = nn.Linear(12 * 6 * 8, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(self.stem(x))
        match self.head:
            case "linear" | "softmax":
                logits = self.fc(functional.adaptive_avg_pool2d(maps, 1).flatten(1))
            case "mean":
                logits = self.fc(maps.mean((2, 3)))
            case "whole kernel":
                logits = self.fc(functional.avg_pool2d(maps, maps.shape[2:]).flatten(1))
            case "convolution":
                logits = self.conv(maps.mean((2, 3), keepdim=True)).flatten(1)
            case "class map":
                logits = functional.adaptive_avg_pool2d(self.conv(maps).relu(), 1).flatten(1)
            case "largest":
                logits = self.fc(functional.adaptive_max_pool2d(maps, 1).flatten(1))
            case _:
                logits = self.flat(maps.flatten(1))
        return logits.softmax(1) if self.head == "softmax" else logits


def written(
    path: Path,
    *,
    head: str = "linear",
    batch: int = 1,
    dynamic: bool = False,
    traced: bool = False,
) -> Path:
    """Write a network by one of the two exporters of torch; `traced` by the newer one.

    That one keeps the weights in a file of their own.
    """
    torch.manual_seed(0)
    if traced:
        example = (torch.zeros(batch, SPEC.channels, SPEC.height, SPEC.width),)
        torch.onnx.export(Small(head).eval(), example, path, dynamo=True, verbose=False)
        return path
    with warnings.catch_warnings():
        # The exporter is deprecated as a whole, and its files are everywhere.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            Small(head).eval(),
            (torch.zeros(batch, SPEC.channels, SPEC.height, SPEC.width),),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}} if dynamic else None,
        )
    return path


@pytest.fixture(scope="module")
def photographs() -> Pictures:
    pictures = shipped(SPEC)
    assert len(pictures) == 5
    return pictures


def exported(source: Existing, repository: Path, pictures: Pictures, **options):
    return export_existing(
        source, LABELS, repository=repository, name="small", pictures=pictures, **options
    )


@pytest.mark.parametrize(
    ("head", "methods", "layer_size"),
    [
        ("linear", POOLED_LINEAR, (6, 8)),
        ("mean", POOLED_LINEAR, (6, 8)),
        ("whole kernel", POOLED_LINEAR, (6, 8)),
        ("convolution", POOLED_LINEAR, (6, 8)),
        ("softmax", POOLED_LINEAR, (6, 8)),
        ("class map", ["cam"], (6, 8)),
    ],
)
def test_a_pooled_head_is_explained(
    tmp_path: Path, photographs: Pictures, head: str, methods: list[str], layer_size
) -> None:
    source = open_existing(written(tmp_path / "small.onnx", head=head), SPEC)
    done = exported(source, tmp_path / "models", photographs)
    manifest = done.manifest
    assert done.note is None
    assert [cam.method for cam in manifest.cams] == methods
    assert {(cam.height, cam.width) for cam in manifest.cams} == {layer_size}
    parity = manifest.variant("fp32").parity
    assert parity.cams.keys() == set(methods)
    assert parity.features.keys() == {feature.layer for feature in manifest.features}
    assert verify.main([str(done.path)]) == 0

    # The maps are those of autograd, which the export did without.
    torch.manual_seed(0)
    module = Small("linear" if head == "softmax" else head).eval()
    mean, std = (torch.tensor(values)[:, None, None] for values in (SPEC.mean, SPEC.std))
    pixels = torch.from_numpy(photographs.images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        maps = module.body(module.stem((pixels - mean) / std))
        logits = module((pixels - mean) / std)
    classes = np.tile([-1, 2, 0], (5, 1))
    with create_runner(Bundle.open(done.path), backend="onnxruntime") as runner:
        got = runner.run({"image": photographs.images, "class_ids": classes}, ["logits", "cam.cam"])
    np.testing.assert_allclose(got["logits"], logits, rtol=1e-4, atol=1e-5)
    chosen = torch.stack([logits.argmax(1), torch.full((5,), 2), torch.zeros(5).long()], 1)
    if methods == ["cam"]:
        scores = module.conv(maps).relu().detach()
        expected = scores[torch.arange(5)[:, None], chosen]
    else:
        layer = module.conv if head == "convolution" else module.fc
        rows = layer.weight.detach().flatten(1)[chosen]
        expected = torch.einsum("nkc,nchw->nkhw", rows, maps)
    np.testing.assert_allclose(got["cam.cam"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "note"),
    [
        ("largest", "is no average over a whole map"),
        ("flat", "is no average over a whole map"),
    ],
)
def test_without_a_pooled_head_there_are_feature_maps_alone(
    tmp_path: Path, photographs: Pictures, head: str, note: str
) -> None:
    source = open_existing(written(tmp_path / "small.onnx", head=head), SPEC)
    names = [layer.path for layer in source.layers if layer.kind == "Relu"]
    assert len(names) == 2
    done = exported(source, tmp_path / "models", photographs, layers=names)
    assert done.note is not None
    assert note in done.note
    assert done.manifest.cams == ()
    assert [(f.layer, f.channels, f.height, f.width) for f in done.manifest.features] == [
        (names[0], 8, 14, 18),
        (names[1], 12, 6, 8),
    ]
    assert verify.main([str(done.path)]) == 0


@pytest.mark.parametrize(
    "options", [{"dynamic": True}, {"batch": 3}, {"traced": True}, {"traced": True, "batch": 2}]
)
def test_any_number_of_pictures_goes_in(
    tmp_path: Path, photographs: Pictures, options: dict[str, int]
) -> None:
    file = written(tmp_path / "small.onnx", **options)
    done = exported(open_existing(file, SPEC), tmp_path / "models", photographs)
    with create_runner(Bundle.open(done.path), backend="onnxruntime") as runner:
        whole = runner.run({"image": photographs.images}, ["logits"])["logits"]
        alone = runner.run({"image": photographs.images[3:4]}, ["logits"])["logits"]
    np.testing.assert_allclose(whole[3:4], alone, rtol=1e-5)


def graph_file(path: Path, nodes: list, constants: dict[str, np.ndarray], **options) -> Path:
    """Write nodes from `x` to `y` as an ONNX file."""
    inputs = options.get("inputs", [("x", ["n", 32, 40, 3])])
    outputs = options.get("outputs", [("y", ["n", 5])])
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", options.get("opset", 13)), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(model, path)
    return path


def keras_like(path: Path, opset: int = 13) -> Path:
    """Channels last outside, blue first, a mean over the middle axes, MatMul, Add and softmax."""
    generator = np.random.default_rng(0)
    return graph_file(
        path,
        [
            helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["first", "kernel"], ["maps"], strides=[4, 4], name="conv"),
            helper.make_node("Relu", ["maps"], ["active"], name="relu"),
            helper.make_node("Transpose", ["active"], ["last"], perm=[0, 2, 3, 1]),
            helper.make_node("ReduceMean", ["last"], ["means"], axes=[1, 2], keepdims=0),
            helper.make_node("MatMul", ["means", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["y"], axis=-1),
        ],
        {
            "kernel": generator.normal(size=(6, 3, 5, 5)).astype(np.float32),
            "weight": generator.normal(size=(6, 5)).astype(np.float32),
            "bias": generator.normal(size=5).astype(np.float32),
        },
        opset=opset,
    )


@pytest.mark.parametrize("opset", [11, 13])
def test_channels_last_blue_first_and_a_softmax(
    tmp_path: Path, photographs: Pictures, opset: int
) -> None:
    # One for all colours, or to turn the picture round would be another thing.
    spec = SPEC.model_copy(update={"mean": (0.4,) * 3, "std": (0.2,) * 3})
    source = open_existing(keras_like(tmp_path / "keras.onnx", opset), spec, bgr=True)
    assert (source.layout, source.cam_layer) == ("nhwc", "relu")
    assert source.ending.said == "softmax, taken off the end of the network"
    done = exported(source, tmp_path / "models", photographs, layers=["relu"])
    assert [cam.method for cam in done.manifest.cams] == POOLED_LINEAR
    assert done.manifest.parameters == 6 * 3 * 25 + 6 * 5 + 5
    assert done.manifest.opset == 13
    other = open_existing(keras_like(tmp_path / "keras.onnx", opset), spec)
    with create_runner(Bundle.open(done.path), backend="onnxruntime") as runner:
        backwards = runner.run({"image": photographs.images}, ["logits"])["logits"]
    assert (backwards < 0).any(), "logits, and no probabilities"
    again = exported(other, tmp_path / "models", photographs, layers=[])
    with create_runner(Bundle.open(again.path), backend="onnxruntime") as runner:
        forwards = runner.run({"image": photographs.images[..., ::-1].copy()}, ["logits"])["logits"]
    np.testing.assert_allclose(backwards, forwards, rtol=1e-3, atol=1e-4)


class Turning(nn.Module):
    """Keeps its maps as [N, h, w, C], with attention over them, and pools the middle axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, 4)
        self.norm = nn.LayerNorm(24)
        self.query, self.key = nn.Linear(24, 24), nn.Linear(24, 24)
        self.fc = nn.Linear(24, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(self.stem(x).permute(0, 2, 3, 1))
        tokens = maps.flatten(1, 2).unsqueeze(1)
        shares = (self.query(tokens) @ self.key(tokens).transpose(2, 3)).softmax(3)
        maps = maps + (shares @ tokens).reshape(maps.shape)
        return self.fc(maps.mean((1, 2)))


def test_maps_with_their_channels_last_come_out_channels_first(
    tmp_path: Path, photographs: Pictures
) -> None:
    torch.manual_seed(0)
    network = Turning().eval()
    file = tmp_path / "turning.onnx"
    example = (torch.zeros(2, SPEC.channels, SPEC.height, SPEC.width),)
    torch.onnx.export(network, example, file, dynamo=True, verbose=False)
    source = open_existing(file, SPEC)
    sizes = {(x.channels, x.height, x.width, str(x.layout)) for x in source.layers}
    assert sizes == {(24, 8, 10, "nchw"), (24, 8, 10, "nhwc")}
    kinds = {"MatMul", "Softmax"}
    attention = [x for node in source.model.graph if node.op_type in kinds for x in [node.name]]
    assert len(source.left_out.keys() & set(attention)) >= 3, "queries, keys and their products"
    last = next(x.path for x in source.layers if x.kind == "LayerNormalization")
    done = exported(source, tmp_path / "models", photographs, layers=[last])
    assert {(cam.height, cam.width, cam.layout) for cam in done.manifest.cams} == {(8, 10, "nhwc")}
    assert done.manifest.features[0].layout == "nhwc"
    mean, std = (torch.tensor(values)[:, None, None] for values in (SPEC.mean, SPEC.std))
    pixels = (torch.from_numpy(photographs.images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        expected = network.norm(network.stem(pixels).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    with create_runner(Bundle.open(done.path), backend="onnxruntime") as runner:
        got = runner.run({"image": photographs.images}, [f"features.{last}"])[f"features.{last}"]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    attended = next(iter(source.left_out.keys() & set(attention)))
    with pytest.raises(UsageError, match=r"no feature map \(no rows and columns"):
        exported(open_existing(file, SPEC), tmp_path / "other", photographs, layers=[attended])


def computed_shape(path: Path) -> Path:
    """The pictures' number is read off the map, and joined with what else a Reshape needs."""
    generator = np.random.default_rng(0)
    return graph_file(
        path,
        [
            helper.make_node("Conv", ["x", "kernel"], ["maps"], strides=[4, 4], name="conv"),
            helper.make_node("Relu", ["maps"], ["active"], name="relu"),
            helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
            helper.make_node("Shape", ["pooled"], ["shape"]),
            helper.make_node("Slice", ["shape", "zero", "one"], ["number"]),
            helper.make_node("Concat", ["number", "rest"], ["wanted"], axis=0),
            helper.make_node("Reshape", ["pooled", "wanted"], ["vector"]),
            helper.make_node("MatMul", ["vector", "weight"], ["hidden"]),
            helper.make_node("Add", ["hidden", "bias"], ["y"]),
        ],
        {
            "kernel": generator.normal(size=(6, 3, 5, 5)).astype(np.float32),
            "weight": generator.normal(size=(6, 5)).astype(np.float32),
            "bias": generator.normal(size=5).astype(np.float32),
            "zero": np.array([0]),
            "one": np.array([1]),
            "rest": np.array([-1]),
        },
        inputs=[("x", ["n", 3, 32, 40])],
        outputs=[("y", ["n", "classes"])],
    )


def test_a_shape_that_the_graph_computes_is_measured(tmp_path: Path, photographs: Pictures) -> None:
    file = computed_shape(tmp_path / "computed.onnx")
    done = exported(open_existing(file, SPEC), tmp_path / "models", photographs)
    assert [cam.method for cam in done.manifest.cams] == POOLED_LINEAR
    pixels = ((photographs.images / 255 - SPEC.mean) / SPEC.std).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(str(file))
    (expected,) = session.run(None, {"x": pixels.astype(np.float32)})
    with create_runner(Bundle.open(done.path), backend="onnxruntime") as runner:
        got = runner.run({"image": photographs.images}, ["logits"])["logits"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_before_a_padding_is_offered(tmp_path: Path, photographs: Pictures) -> None:
    generator = np.random.default_rng(0)
    file = graph_file(
        tmp_path / "padded.onnx",
        [
            helper.make_node("Conv", ["x", "first"], ["maps"], strides=[2, 2], name="conv"),
            helper.make_node("Relu", ["maps"], ["active"], name="relu"),
            helper.make_node("Pad", ["active", "edges"], ["padded"], name="pad"),
            helper.make_node("Conv", ["padded", "second"], ["last"], strides=[2, 2], name="conv2"),
            helper.make_node("ReduceMean", ["last"], ["means"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["means", "weight"], ["y"]),
        ],
        {
            "first": generator.normal(size=(6, 3, 3, 3)).astype(np.float32),
            "second": generator.normal(size=(6, 6, 3, 3)).astype(np.float32),
            "edges": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
            "weight": generator.normal(size=(6, 5)).astype(np.float32),
        },
        inputs=[("x", ["n", 3, 32, 40])],
    )
    done = exported(
        open_existing(file, SPEC), tmp_path / "models", photographs, layers=["relu", "conv2"]
    )
    assert [feature.layer for feature in done.manifest.features] == ["relu", "conv2"]


def simple(path: Path, operator: str = "Relu", domain: str = "", **options) -> Path:
    """One operator, a mean and a product."""
    nodes = [
        helper.make_node(operator, ["x"], ["maps"], domain=domain),
        helper.make_node("ReduceMean", ["maps"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["means", "weight"], ["y"]),
        *options.pop("nodes", []),
    ]
    return graph_file(path, nodes, {"weight": np.eye(3, 5, dtype=np.float32)}, **options)


def test_what_is_no_classifier_is_refused(tmp_path: Path, photographs: Pictures) -> None:
    file = tmp_path / "file.onnx"

    def refusal(kind: type[ExportError] = ExportError, **arguments) -> str:
        with pytest.raises(kind) as caught:
            open_existing(file, SPEC, **arguments)
        return str(caught.value)

    assert "no such file" in refusal(UsageError)
    file.write_bytes(b"\x00\x01 no protobuf")
    assert refusal() == f"{file} is no ONNX file: export the network to ONNX again"
    simple(file, inputs=[("x", ["n", 32, 40, 3]), ("z", ["n", 1])])
    assert "the inputs x, z; one, the picture, is expected" in refusal()
    simple(file, inputs=[("x", ["n", 28, 28, 1])])
    assert "and the specification says 3 x 32 x 40" in refusal(UsageError)
    simple(file)
    assert "says 3 x 32 x 40" in refusal(UsageError, layout="nchw")
    simple(
        file,
        nodes=[helper.make_node("Relu", ["y"], ["z"])],
        outputs=[("y", ["n", 5]), ("z", ["n", 5])],
    )
    assert "the outputs y, z; --logits chooses one" in refusal(UsageError)
    assert "w is none of them" in refusal(UsageError, logits="w")
    assert open_existing(file, SPEC, logits="z").classes == 5
    simple(file, outputs=[("maps", ["n", 32, 40, 3])])
    assert "[N, classes] is expected" in refusal()
    simple(file, "Unheard", "own")
    assert "ONNX Runtime does not take" in (said := refusal())
    assert "Unheard" in said
    with pytest.raises(UsageError, match="3 labels for the 5 classes"):
        export_existing(
            open_existing(simple(file), SPEC), ["a", "b", "c"],
            repository=tmp_path / "models", name="small", pictures=photographs,
        )  # fmt: skip
    assert not (tmp_path / "models").exists()


def test_a_number_of_pictures_that_cannot_be_freed_is_refused(
    tmp_path: Path, photographs: Pictures
) -> None:
    file = graph_file(
        tmp_path / "fixed.onnx",
        [
            helper.make_node("Reshape", ["x", "all"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
            helper.make_node("Unsqueeze", ["scores", "axis"], ["y"]),
        ],
        {
            "all": np.array([-1]),
            "axis": np.array([0]),
            "weight": np.ones((32 * 40 * 3, 5), np.float32),
        },
        inputs=[("x", [1, 32, 40, 3])],
        outputs=[("y", [1, 5])],
    )
    with pytest.raises(ExportError, match=r"not take 4 pictures at once .* with a dynamic batch"):
        exported(open_existing(file, SPEC), tmp_path / "models", photographs)
    assert not (tmp_path / "models").exists()


BLOCKED = """
import sys
for name in ("torch", "torchvision", "timm", "foveate_train"):
    sys.modules[name] = None
from foveate_client.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_needs_no_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keras_like(tmp_path / "keras.onnx")
    (tmp_path / "input.json").write_text(SPEC.model_dump_json())
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")

    def foveate(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BLOCKED, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    where = ["--repository", "models", "--name", "keras"]
    done = foveate("export", "keras.onnx", "--input-spec", "input.json",
                   "--labels", "labels.txt", *where, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == "models/keras/1"
    refused = foveate("export", "foveate:lenet5", *where)
    assert refused.returncode == 1
    assert 'pip install "foveate-export[torch]"' in refused.stderr
    assert "Traceback" not in refused.stderr

    listing = [str(tmp_path / "keras.onnx"), "--input-spec", str(tmp_path / "input.json")]
    assert export_command.main([*listing, "--list-layers", "--json"]) == 0
    bare = ["--labels", str(tmp_path / "labels.txt"), "--name", "bare", "--no-cams"]
    layers = {layer["layer"]: layer for layer in json.loads(capsys.readouterr().out)}
    assert export_command.main([*listing, *bare, "--repository", str(tmp_path / "models")]) == 0
    assert "cams: no class activation maps: the model was exported" in capsys.readouterr().out
    manifest = Bundle.open(tmp_path / "models" / "bare" / "1").manifest
    assert manifest.cams == ()
    assert manifest.features
    assert layers["relu"] == {
        "layer": "relu", "type": "Relu", "channels": 6, "height": 7, "width": 9, "layout": "nchw",
        "default": True,
    }  # fmt: skip
    assert export_command.main(listing) == 2
    assert "--repository and --name say where" in capsys.readouterr().err
    assert export_command.main([*listing, "--repository", "m", "--name", "n"]) == 2
    assert "--labels names the classes" in capsys.readouterr().err
