"""fp16 is judged where halves are kept, and what leaves their range stays in float32."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from foveate_export.errors import ExportError
from foveate_export.exporter import export
from foveate_export.pictures import Pictures
from foveate_export.publish.bundle import Exported
from foveate_export.publish.variants.half import halve
from foveate_export.publish.variants.ranges import loud_nodes
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands import verify
from foveate_train.classifier import Classifier

Export = Callable[[nn.Module], Exported]


class Scaled(nn.Module):
    """A convolution whose values are scaled, and a second that scales them back."""

    def __init__(self, up: float, back: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Conv2d(1, 16, 5, 4), nn.Conv2d(16, 8, 1)
        self.rest, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)
        with torch.no_grad():
            self.stem.weight.mul_(up)
            self.stem.bias.mul_(up)
            self.body.weight.mul_(back)

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.body(self.stem(pictures).relu()).relu()
        return self.fc(self.rest(maps).relu().mean((2, 3)))


class LargeMean(nn.Module):
    """Means over so many values that their sums leave the range, and the values do not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.fc((self.stem(pictures).relu() + 100).mean((2, 3)) / 100)


class Squared(nn.Module):
    """A normalisation by the mean square, written out: the squares leave the range."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.last = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        maps = self.stem(pictures) * 300
        maps = maps / (maps.pow(2).mean(1, keepdim=True) + 1e-12).sqrt()
        return self.fc(self.last(maps).relu().mean((2, 3)))


@pytest.fixture
def export_halved(
    tmp_path: Path, digits: Pictures, digit_classifier: Callable[[nn.Module], Classifier]
) -> Export:
    """Export a network of MNIST's digits in both precisions."""

    def run(module: nn.Module) -> Exported:
        return export(
            digit_classifier(module),
            repository=tmp_path,
            name="halved",
            pictures=Pictures(digits.images[:8], digits.description),
            variants=["fp32", "fp16"],
        )

    return run


def halves(exported: Exported) -> onnx.GraphProto:
    return onnx.load(exported.path / "model.fp16.onnx").graph


def float_convolutions(graph: onnx.GraphProto) -> int:
    kernels = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return sum(
        kernels[node.input[1]] == TensorProto.FLOAT for node in graph.node if node.op_type == "Conv"
    )


@pytest.mark.parametrize(
    ("module", "kept"),
    [
        (Scaled(1, 1), 0),
        (Scaled(1e6, 1e-6), 2),  # overflows
        (Scaled(2e5, 1e-3), 2),
        (Scaled(1e-7, 1e7), 2),  # nothing is left of it
    ],
    ids=["ordinary", "loud", "large", "silent"],
)
def test_what_leaves_the_range_stays_in_float32(
    module: nn.Module, kept: int, export_halved: Export
) -> None:
    exported = export_halved(module)
    assert float_convolutions(halves(exported)) == kept
    rms = exported.manifest.variant("fp16").parity.rms
    assert 1e-5 < rms["logits"] < 5e-3
    checks = verify.verify(Bundle.open(exported.path), "fp16", "torch")
    assert checks
    assert all(check.accepted for check in checks)


@pytest.mark.parametrize("module", [LargeMean(), Squared()], ids=["mean", "squares"])
def test_sums_within_a_node_count(module: nn.Module, export_halved: Export) -> None:
    exported = export_halved(module)
    graph = halves(exported)
    made = {name: node for node in graph.node for name in node.output}
    means = [node for node in graph.node if node.op_type == "ReduceMean"]
    assert any(made[mean.input[0]].op_type in ("Cast", "Pow", "Identity", "Mul") for mean in means)
    checks = verify.verify(Bundle.open(exported.path), "fp16", "torch")
    assert all(check.accepted for check in checks)


def test_nothing_left_to_halve_is_refused(export_halved: Export, tmp_path: Path) -> None:
    class AllLoud(Scaled):
        def forward(self, pictures: Tensor) -> Tensor:
            maps = self.rest(self.body(self.stem(pictures).relu()).relu() * 1e7).relu()
            return self.fc(maps.mean((2, 3)))

    with pytest.raises(ExportError, match="fp16: every convolution and linear layer takes"):
        export_halved(AllLoud(1e6, 1e-1))
    assert not (tmp_path / "halved").exists()


def test_what_overflows_unseen_is_refused_by_its_answers(
    export_halved: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if other pictures had been measured: then the engine that keeps halves sees it.
    monkeypatch.setattr("foveate_export.exporter.loud_nodes", lambda *_: [])
    with pytest.raises(ExportError, match=r"fp16: the graph differs .*: logits by nan of"):
        export_halved(Scaled(1e6, 1e-6))


def test_what_torch_cannot_run_is_judged_in_float32_and_told(
    export_halved: Export,
    digits: Pictures,
    digit_classifier: Callable[[nn.Module], Classifier],
    tmp_path: Path,
) -> None:
    class Wave(Scaled):
        def forward(self, pictures: Tensor) -> Tensor:
            return self.fc(self.rest(self.body(self.stem(pictures).sin())).relu().mean((2, 3)))

    said: list[str] = []
    exported = export(
        digit_classifier(Wave(1, 1)),
        repository=tmp_path,
        name="wave",
        pictures=digits,
        variants=["fp32", "fp16"],
        stage=lambda text: said.append(text) or nullcontext(),
    )
    assert exported.manifest.variant("fp16").parity.rms["logits"] < 5e-3
    assert any(
        "judged in float32 and by its ranges, for " in text and "Sin" in text for text in said
    )


def test_loud_nodes_are_those_that_measure_so(tmp_path: Path) -> None:
    constants = {
        "thousand": np.float32(1000),
        "tiny": np.float32(1e-6),
        "axes": np.array([1, 2, 3]),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "thousand"], ["large"], "loud"),
        helper.make_node("Div", ["large", "thousand"], ["back"], "takes what is loud"),
        helper.make_node("Relu", ["back"], ["quiet"], "quiet"),
        helper.make_node("Add", ["quiet", "tiny"], ["added"], "adds what no half holds"),
        helper.make_node("ReduceMean", ["quiet", "axes"], ["mean"], "adds up", keepdims=0),
        helper.make_node("Neg", ["mean"], ["logits"], "quiet too"),
        helper.make_node("ReduceMax", ["added", "axes"], ["features"], "quiet as well", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "ranges",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8, 8, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"])
            for name in ("logits", "features")
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "ranges.onnx")
    images = np.full((2, 8, 8, 3), 200, np.uint8)
    assert loud_nodes(tmp_path / "ranges.onnx", images) == [
        "loud",
        "takes what is loud",
        "adds what no half holds",
        "adds up",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["ranges.onnx"]


def test_between_nodes_in_float32_nothing_is_halved(
    tmp_path: Path, convnet4_export: Exported
) -> None:
    source, target = convnet4_export.path / "model.onnx", tmp_path / "half.onnx"
    kinds = ("Conv", "MaxPool", "Relu")
    layers = [node.name for node in onnx.load(source).graph.node if node.op_type in kinds]
    halve(source, target, layers[:4])
    graph = onnx.load(target).graph
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.name in layers[1:4]:
            before = made[node.input[0]]
            while before.op_type == "Identity":
                before = made[before.input[0]]
            assert before.name in layers[:3]
