"""fp16 and int8 of real classifiers, and what keeps a bad variant out of a bundle."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
import skimage
import torch
from benchmarks.attention_variants import in_integers
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from foveate_export.commands import export as export_command
from foveate_export.errors import AccuracyError, ExportError, UsageError
from foveate_export.exporter import export
from foveate_export.graph.classifier import ExplainedClassifier
from foveate_export.graph.onnx import write_onnx
from foveate_export.pictures import Pictures
from foveate_export.proof.comparison import TOLERANCES
from foveate_export.publish.bundle import Exported
from foveate_export.publish.variants import INT8
from foveate_export.publish.variants.acceptance import check_drop
from foveate_export.publish.variants.calibration import MOST, Calibration, open_calibration
from foveate_export.publish.variants.half import halve
from foveate_export.publish.variants.quantise import Scheme, candidates, find_trunk
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.golden import open_golden, refusals
from foveate_runtime.bundle.manifest import Accuracy
from foveate_runtime.commands import evaluate, verify
from foveate_runtime.evaluation.accuracy import prepared
from foveate_runtime.evaluation.labelled import Labelled, open_labelled
from foveate_train.classifier import Classifier
from foveate_train.data import mnist

SHIPPED = Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="module")
def lite0_bundle(lite0_export: Exported) -> Bundle:
    return Bundle.open(lite0_export.path)


def graph_of(exported: Exported, variant: str) -> onnx.GraphProto:
    return onnx.load(exported.path / exported.manifest.variant(variant).file).graph


def types(graph: onnx.GraphProto) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}


def test_int8_recognises_what_fp32_does(
    lite0_bundle: Bundle, labelled_photographs: Labelled
) -> None:
    spec = lite0_bundle.manifest.input
    images = np.stack([prepared(p, spec, name) for name, p, _ in labelled_photographs])
    targets = np.array([target for _, _, target in labelled_photographs])
    best = {}
    for variant, backend in (
        ("fp32", "onnxruntime"),
        ("int8", "onnxruntime"),
        ("int8", "openvino"),
    ):
        with create_runner(lite0_bundle, variant=variant, backend=backend, threads=2) as runner:
            logits = [runner.run({"image": part}, ["logits"])["logits"]
                      for part in np.array_split(images, max(1, len(images) // 20))]  # fmt: skip
        best[variant, backend] = np.concatenate(logits).argmax(1)
    fp32 = best.pop(("fp32", "onnxruntime"))
    for int8 in best.values():
        assert (int8 == targets).sum() >= (fp32 == targets).sum() - 1
        assert (int8 == fp32).mean() >= 0.96


def test_the_manifest_tells_how_each_variant_was_measured(
    lite0_export: Exported, calibration: Calibration, labelled_photographs: Labelled
) -> None:
    fp32, fp16, int8 = lite0_export.manifest.variants
    assert [v.name for v in (fp32, fp16, int8)] == ["fp32", "fp16", "int8"]
    outputs = {
        "logits",
        "cam.cam",
        *(f"features.{f.layer}" for f in lite0_export.manifest.features),
    }
    for variant in (fp32, fp16, int8):
        assert variant.tolerances == TOLERANCES[variant.name]
        assert variant.parity.rms.keys() >= outputs
        assert variant.accuracy.images == len(labelled_photographs)
    assert not refusals(fp16.parity.rms, fp16.tolerances)
    assert not refusals(int8.parity.rms, int8.tolerances)
    assert fp32.parity.rms["logits"] < 1e-5 < fp16.parity.rms["logits"]
    assert fp16.parity.rms["logits"] < int8.parity.rms["logits"]
    assert (fp32.quantisation, fp16.quantisation) == (None, None)
    made = int8.quantisation
    assert (made.scheme, made.images, made.digest) == (
        "asymmetric",
        len(calibration),
        calibration.digest,
    )
    assert made.agreement >= 0.96
    assert made.sqnr > 15


@pytest.mark.parametrize(("variant", "share"), [("fp16", 0.51), ("int8", 0.29)])
def test_the_interface_stays_and_no_weight_is_held_twice(
    lite0_export: Exported, variant: str, share: float
) -> None:
    fp32, other = graph_of(lite0_export, "fp32"), graph_of(lite0_export, variant)
    assert types(other) == types(fp32)
    files = lite0_export.manifest.files
    name = lite0_export.manifest.variant(variant).file
    assert files[name].size < share * files["model.onnx"].size


def test_maps_are_computed_in_float32(lite0_export: Exported) -> None:
    for variant in ("fp16", "int8"):
        model = onnx.load(lite0_export.path / lite0_export.manifest.variant(variant).file)
        graph = onnx.shape_inference.infer_shapes(model).graph
        kinds = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
        products = [node for node in graph.node if node.op_type == "MatMul"]
        assert products
        kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        inputs = {name for product in products for name in product.input}
        assert {kinds[name] for name in inputs} == {onnx.TensorProto.FLOAT}


def test_int8_holds_every_layer_in_int8(lite0_export: Exported) -> None:
    graph = graph_of(lite0_export, "int8")
    makers = {name: node for node in graph.node for name in node.output}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 50
    for node in layers:
        weight = makers[node.input[1]]
        assert weight.op_type == makers[node.input[0]].op_type == "DequantizeLinear"
    assert lite0_export.manifest.variant("int8").quantisation.float_layers == ()


TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "convnext": lambda: ConvNeXt(
        in_chans=1, num_classes=10, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), patch_size=2,
        output_stride=8,
    ),
    "swin": lambda: SwinTransformer(
        img_size=28, patch_size=2, in_chans=1, num_classes=10, embed_dim=12,
        depths=(2, 1), num_heads=(2, 2), window_size=7,
    ),
    "vit": lambda: VisionTransformer(
        img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=24, depth=2, num_heads=3
    ),
}  # fmt: skip


@pytest.mark.parametrize("scheme", INT8.values())
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_int8_keeps_softmax_and_gelu_in_float(
    name: str, scheme: Scheme, tmp_path: Path, digits: Pictures, digit_classifier
) -> None:
    torch.manual_seed(0)
    classifier = digit_classifier(TRANSFORMERS[name]())
    source, target = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    # Without maps: they compute in float in any case.
    graph = ExplainedClassifier(classifier.module, classifier.input, None, []).eval()
    write_onnx(graph, classifier.input, source)
    next(candidates(source, target, digits.images[:4], scheme, stage=lambda _: nullcontext()))
    before, after = (
        Counter(node.op_type for node in onnx.load(file).graph.node) for file in (source, target)
    )
    kept = {"Softmax", "Gelu"} & before.keys()
    assert kept == ({"Gelu"} if name == "convnext" else {"Softmax", "Gelu"})
    found = onnx.load(target).graph
    integers = in_integers(found)
    assert integers
    for node in found.node:
        if node.op_type in kept:
            assert node.output[0] not in integers
    assert {kind: before[kind] for kind in kept} == {kind: after[kind] for kind in kept}


def test_maps_dequantise_the_rows_that_they_read_alone(lite0_export: Exported) -> None:
    graph = graph_of(lite0_export, "int8")
    weights = {t.name: t for t in graph.initializer}
    gathered = {n.input[0] for n in graph.node if n.op_type == "GatherND"} & weights.keys()
    assert {(weights[name].data_type, *weights[name].dims) for name in gathered} == {
        (onnx.TensorProto.INT8, 1000, 1280),
        (onnx.TensorProto.FLOAT, 1000),
    }


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_golden_answers_hold_for_every_variant_and_engine(
    lite0_bundle: Bundle, backend: str
) -> None:
    golden = open_golden(lite0_bundle)
    assert (lite0_bundle.path / "golden.npz").stat().st_size < 1_000_000
    checks = verify.verify(lite0_bundle, None, backend)
    assert len(checks) == 3 * len(golden.outputs)
    assert all(check.accepted for check in checks)


def test_evaluate_takes_a_variant_and_an_engine(
    lite0_export: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "espresso").mkdir()
    shutil.copy(SHIPPED / "coffee.png", tmp_path / "espresso")
    repository = lite0_export.path.parent.parent
    arguments = ["--repository", str(repository), "--model", "lite0", "--data", str(tmp_path)]
    code = evaluate.main([*arguments, "--variant", "int8", "--backend", "openvino", "--json"])
    assert code == 0
    scored = json.loads(capsys.readouterr().out)
    assert (scored["variant"], scored["backend"], scored["top1"]) == ("int8", "openvino", 1.0)


class RandomFeatures(nn.Module):
    """Random convolutions of digits, whose readout the least squares find.

    After `traps` of the convolutions one channel is a thousand times larger
    than the others, which the next convolution makes up for: nothing in float,
    but 256 steps for both leave nothing of the others.
    """

    def __init__(self, traps: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(1, 16, 5, 2), nn.Conv2d(16, 32, 3, 2), nn.Conv2d(32, 64, 3)]
        )
        self.scales = nn.ParameterList()
        for index, conv in enumerate(self.convolutions):
            nn.init.normal_(
                conv.weight, std=(2 / conv.weight[0].numel()) ** 0.5, generator=generator
            )
            nn.init.zeros_(conv.bias)
            scale = torch.ones(1, conv.out_channels, 1, 1)
            if index < traps:
                scale[:, 0] = 1000
            self.scales.append(nn.Parameter(scale))
        for scale, conv in zip(self.scales, list(self.convolutions)[1:], strict=False):
            conv.weight.data /= scale
        self.fc = nn.Linear(64 * 9, 10)

    def features(self, x: Tensor) -> Tensor:
        for conv, scale in zip(self.convolutions, self.scales, strict=True):
            x = conv(x).relu() * scale
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


@pytest.fixture(scope="module")
def trapped(digit_classifier):
    """Return a function that makes a classifier of digits with a number of traps."""

    def make(traps: int) -> Classifier:
        module = RandomFeatures(traps)
        images, labels = mnist.load("train")
        pixels = (torch.from_numpy(images[:4000, None]) / 255 - 0.1307) / 0.3081
        with torch.no_grad():
            known = torch.cat([module.features(pixels), torch.ones(len(pixels), 1)], 1)
            wanted = nn.functional.one_hot(torch.from_numpy(labels[:4000]), 10).float()
            gram = known.T @ known + torch.eye(known.shape[1])
            readout = torch.linalg.solve(gram, known.T @ wanted)
            module.fc.weight.data = readout[:-1].T.contiguous()
            module.fc.bias.data = readout[-1]
        return digit_classifier(module)

    return make


def test_a_layer_that_int8_hurts_is_found_and_left_in_float(
    tmp_path: Path, trapped, digits: Pictures
) -> None:
    classifier = trapped(1)
    exported = export(
        classifier,
        repository=tmp_path,
        name="trapped",
        pictures=digits,
        layers=[],
        variants=["int8", "fp32"],
        calibration=open_calibration("mnist", classifier),
        labelled=open_labelled("mnist", classifier.labels, 500),
    )
    int8, fp32 = exported.manifest.variants
    assert (int8.name, fp32.name) == ("int8", "fp32")
    assert fp32.accuracy.top1 > 0.85
    assert int8.accuracy.top1 >= fp32.accuracy.top1 - 0.01
    (left,) = int8.quantisation.float_layers
    graph = graph_of(exported, "fp32")
    second = [node.name for node in graph.node if node.op_type == "Conv"][1]
    assert left == second


def test_int8_that_loses_too_much_is_refused(tmp_path: Path, trapped, digits: Pictures) -> None:
    classifier = trapped(2)
    with pytest.raises(AccuracyError) as caught:
        export(
            classifier,
            repository=tmp_path / "models",
            name="trapped",
            pictures=digits,
            layers=[],
            variants=["int8"],
            calibration=open_calibration("mnist", classifier),
            labelled=open_labelled("mnist", classifier.labels, 500),
        )
    message = str(caught.value)
    assert message.startswith("int8: the best class is that of fp32 on ")
    assert "points below fp32's " in message
    assert "--max-drop accepts 1" in message
    assert not (tmp_path / "models").exists()


def test_a_bundle_without_fp32(tmp_path: Path, convnet4: Classifier, digits: Pictures) -> None:
    exported = export(
        convnet4,
        repository=tmp_path,
        name="small",
        pictures=digits,
        layers=[],
        variants=["int8-symmetric", "fp16"],
        calibration=open_calibration("mnist", convnet4),
    )
    assert sorted(exported.manifest.files) == [
        "golden.npz",
        "labels.txt",
        "model.fp16.onnx",
        "model.int8-symmetric.onnx",
    ]
    symmetric = graph_of(exported, "int8-symmetric")
    zero_points = [t for t in symmetric.initializer if t.name.endswith("_zero_point")]
    assert zero_points
    for tensor in zero_points:
        assert not onnx.numpy_helper.to_array(tensor).any()
    assert all(check.accepted for check in verify.verify(Bundle.open(exported.path), None, None))


@pytest.mark.parametrize(
    ("top1", "max_drop", "refused"),
    [(0.90, 1.0, False), (0.89, 1.0, True), (0.89, 2.0, False), (0.92, 0.0, False)],
)
def test_the_drop_is_counted_in_pictures(top1: float, max_drop: float, refused: bool) -> None:
    fp32 = Accuracy(data="photographs", images=100, top1=0.91, top5=1.0)
    scored = Accuracy(data="photographs", images=100, top1=top1, top5=1.0)
    if not refused:
        check_drop("fp16", scored, fp32, max_drop)
        return
    message = "fp16: top-1 is 89.00% of 100 pictures .*2.00 points below fp32's 91.00%"
    with pytest.raises(AccuracyError, match=message):
        check_drop("fp16", scored, fp32, max_drop)


def test_rows_of_weights_and_the_way_to_the_logits(lite0_export: Exported) -> None:
    graph = graph_of(lite0_export, "fp32")
    trunk = find_trunk(graph, "asymmetric")
    assert len(trunk.layers) == 50
    # Maps read single rows of its weight, and TensorRT gathers no int8.
    assert trunk.layers.keys() - find_trunk(graph, "symmetric").layers.keys() == {"node_linear"}
    assert len(trunk.between) == 9, "the residual additions"
    assert sum(len(nodes) == 2 for nodes in trunk.layers.values()) == 33, "each with its ReLU6"


def test_a_bare_graph_is_halved(tmp_path: Path, convnet4_export: Exported) -> None:
    halve(convnet4_export.path / "model.onnx", tmp_path / "half.onnx")
    graph = onnx.load(tmp_path / "half.onnx").graph
    kernels = [t for t in graph.initializer if len(t.dims) == 4 and "layer" in t.name]
    assert len(kernels) == 4
    assert {t.data_type for t in kernels} == {onnx.TensorProto.FLOAT16}


def test_calibration_takes_a_spread_of_a_large_folder(tmp_path: Path, convnet4: Classifier) -> None:
    for index in range(MOST + 3):
        (tmp_path / f"{index:03}.png").symlink_to(SHIPPED / "coins.png")
    calibration = open_calibration(str(tmp_path), convnet4)
    assert calibration.images.shape == (MOST, 28, 28, 1)
    assert calibration.description == f"pictures of {tmp_path.name}"


def test_the_digest_is_that_of_the_pictures(convnet4: Classifier) -> None:
    first, second = (open_calibration("mnist", convnet4) for _ in range(2))
    assert first.digest == second.digest
    other = Calibration(first.images[::-1], first.description)
    assert other.digest != first.digest
    assert other.digest.startswith("sha256:")


def test_calibration_that_cannot_be(tmp_path: Path, lite0: Classifier) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        open_calibration(str(tmp_path / "nowhere"), lite0)
    with pytest.raises(UsageError, match="not the ten digits"):
        open_calibration("mnist", lite0)
    with pytest.raises(ExportError, match="holds no pictures"):
        open_calibration(str(tmp_path), lite0)
    shutil.copy(SHIPPED / "coffee.png", tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((SHIPPED / "coffee.png").read_bytes()[:10_000])
    with pytest.raises(ExportError, match=r"calibration .*half\.png: the picture is truncated"):
        open_calibration(str(tmp_path), lite0)
    left_out: list[str] = []
    assert len(open_calibration(str(tmp_path), lite0, left_out)) == 1
    (said,) = left_out
    assert "half.png: the picture is truncated" in said
    (tmp_path / "whole.png").unlink()
    with pytest.raises(ExportError, match="none can be decoded"):
        open_calibration(str(tmp_path), lite0, [])


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder that holds nothing."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--variants", "fp32,int8"], 2, "int8: int8 needs pictures to measure its ranges on"),
        (["--variants", ","], 2, "no variant is named"),
        (["--variants", "int8", "--calibration", "nowhere"], 2, "nowhere: no such folder"),
        (["--variants", "int8", "--calibration", "."], 1, "calibration . holds no pictures"),
    ],
)
def test_the_command_says_what_int8_needs(
    empty_folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    where = ["--repository", "models", "--name", "digits"]
    assert export_command.main(["foveate:convnet4", *where, *arguments]) == code
    assert message in capsys.readouterr().err
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize("points", ["-1", "101", "much"])
def test_the_drop_is_a_number_of_points(points: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        export_command.main(["foveate:convnet4", "--max-drop", points])
    assert caught.value.code == 2
    assert "--max-drop" in capsys.readouterr().err
