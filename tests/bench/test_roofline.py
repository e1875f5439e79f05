"""What a graph costs is what the hand counts, and the floor is what follows from it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveate_bench import peaks, roofline
from foveate_bench.counting import CountingError, GraphCost, count
from foveate_bench.peaks import Peaks, ProductPeak
from foveate_runtime.backends.registry import bare_engines
from foveate_runtime.bundle.bundle import Bundle
from foveate_train.catalogue import available

from .conftest import measurement


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    image: Sequence[int | str],
    inputs: dict[str, Sequence[int]] | None = None,
    output: str = "logits",
) -> Path:
    """Write a graph of `image`, float32, and of further inputs, which stand for large weights."""
    fed = {"image": image, **(inputs or {})}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in fed.items()],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def cost(path: Path, batch: int = 1, outputs: Sequence[str] = ("logits",)) -> GraphCost:
    return count(path, batch=batch, outputs=outputs)


def residual(kind: type[np.generic] = np.float32) -> tuple[list[onnx.NodeProto], dict]:
    """A convolution with its activation, a second one that is added to it, and a linear layer."""
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], name="second", group=4),
        node("Add", ["c2", "r1"], ["sum"]),
        node("GlobalAveragePool", ["sum"], ["pooled"], name="pool"),
        node("Flatten", ["pooled"], ["flat"]),
        node("Gemm", ["flat", "w3", "b3"], ["logits"], name="linear", transB=1),
    ]
    weights = {
        "w1": np.ones((4, 3, 3, 3), kind),
        "w2": np.ones((4, 1, 1, 1), kind),
        "w3": np.ones((10, 4), kind),
        "b3": np.ones(10, kind),
    }
    return nodes, weights


def test_each_step_is_what_the_hand_counts(tmp_path: Path) -> None:
    nodes, weights = residual()
    path = write(tmp_path / "graph.onnx", nodes, weights, image=["N", 3, 8, 8])
    first, second, pool, linear = cost(path, batch=2).steps
    # 2 pictures x 4 channels x 64 pixels, each of 3 x 3 x 3 products.
    assert (first.name, first.multiply_adds) == ("first", 2 * 4 * 64 * 27)
    assert (first.weights, first.read, first.written) == (4 * 108, 4 * 2 * 3 * 64, 4 * 2 * 4 * 64)
    # The sum belongs to the second convolution, and the activation is read once for both.
    assert (second.operator, second.multiply_adds) == ("Conv", 2 * 4 * 64)
    assert (second.weights, second.read, second.written) == (16, 2048, 2048)
    assert (pool.multiply_adds, pool.read, pool.written) == (0, 2048, 4 * 2 * 4)
    assert linear.multiply_adds == 2 * 10 * 4
    assert (linear.weights, linear.read, linear.written) == (4 * 50, 32, 4 * 2 * 10)
    assert {step.precision for step in (first, second, linear)} == {"fp32"}


def test_only_what_leads_to_the_outputs_is_counted(tmp_path: Path) -> None:
    nodes, weights = residual()
    path = write(tmp_path / "graph.onnx", nodes, weights, image=["N", 3, 8, 8], output="r1")
    (first,) = cost(path, outputs=["r1"]).steps
    assert first.name == "first"
    assert first.written == 4 * 4 * 64


def test_quantised_tensors_are_bytes_and_their_products_int8(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["image", "scale", "zero"], ["q"], name="quantise"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        node("DequantizeLinear", ["weights", "scale"], ["w"]),
        node("Conv", ["x", "w"], ["c"], name="convolution"),
        node("Relu", ["c"], ["r"]),
        node("QuantizeLinear", ["r", "scale", "zero"], ["q2"]),
        node("DequantizeLinear", ["q2", "scale", "zero"], ["x2"]),
        node("Conv", ["x2", "float"], ["logits"], name="in float"),
    ]
    weights = {
        "scale": np.float32(0.1),
        "zero": np.uint8(0),
        "weights": np.ones((4, 3, 1, 1), np.int8),
        "float": np.ones((5, 4, 1, 1), np.float32),
    }
    path = write(tmp_path / "graph.onnx", nodes, weights, image=["N", 3, 8, 8])
    quantise, convolution, in_float = cost(path).steps
    assert (quantise.read, quantise.written) == (4 * 192, 192)
    assert (convolution.precision, convolution.multiply_adds) == ("int8", 4 * 64 * 3)
    assert (convolution.weights, convolution.read, convolution.written) == (12, 192, 256)
    assert (in_float.precision, in_float.multiply_adds) == ("fp32", 5 * 64 * 4)
    assert (in_float.weights, in_float.read, in_float.written) == (80, 256, 4 * 320)


def test_halves_are_counted_as_halves(tmp_path: Path) -> None:
    nodes, weights = residual(np.float16)
    nodes[0].input[0] = "half"
    cast = helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16)
    path = write(tmp_path / "graph.onnx", [cast, *nodes], weights, image=["N", 3, 8, 8])
    counted = cost(path)
    assert counted.multiply_adds == {"fp16": 4 * 64 * 27 + 4 * 64 + 40}
    assert counted.weights == 2 * (108 + 4 + 50)


def test_weights_are_counted_once_however_often_they_are_read(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["image", "w"], ["once"]),
        node("MatMul", ["once", "w"], ["logits"]),
    ]
    path = write(tmp_path / "graph.onnx", nodes, {"w": np.ones((6, 6), np.float32)}, image=["N", 6])
    assert [step.weights for step in cost(path, batch=5).steps] == [144, 0]
    assert cost(path, batch=5).multiply_adds == {"fp32": 2 * 5 * 36}


def test_shapes_that_are_computed_in_the_graph_are_worked_out(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Shape", ["image"], ["rows"], start=0, end=1),
        node("Squeeze", ["rows"], ["row"]),
        node("Range", ["zero", "row", "one"], ["indices"]),
        node("Gather", ["image", "indices"], ["same"], axis=0),
        node("MatMul", ["same", "w"], ["logits"]),
    ]
    weights = {"zero": np.int64(0), "one": np.int64(1), "w": np.ones((6, 7), np.float32)}
    path = write(tmp_path / "graph.onnx", nodes, weights, image=["N", 6])
    assert cost(path, batch=3).multiply_adds == {"fp32": 3 * 6 * 7}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Einsum", ["image", "image"], ["logits"], equation="ij,ij->i"),
         r"\(Einsum\): this operator is not counted"),
        (helper.make_node("Conv", ["image"], ["logits"], domain="com.example"),
         r"\(Conv\): this operator is not counted"),
        (helper.make_node("NonZero", ["image"], ["logits"]), "logits: the shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_said(tmp_path: Path, node: onnx.NodeProto, message: str) -> None:
    path = write(tmp_path / "graph.onnx", [node], {}, image=["N", 6])
    with pytest.raises(CountingError, match=message):
        cost(path)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"no graph at all")
    with pytest.raises(CountingError, match=r"graph\.onnx: "):
        cost(path)


class Network:
    """Writes down a network, layer by layer; its weights are inputs that have shapes alone."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Sequence[int]] = {}

    def conv(self, x: str, wide: int, out: int, size: int, *, stride: int = 1) -> str:
        pad = size // 2
        return self._add("Conv", x, (out, wide, size, size), strides=[stride] * 2, pads=[pad] * 4)

    def linear(self, x: str, wide: int, out: int) -> str:
        return self._add("Gemm", x, (out, wide), transB=1)

    def plain(self, operator: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def _add(self, operator: str, x: str, shape: Sequence[int], **attributes: object) -> str:
        weight = f"w{len(self.weights)}"
        self.weights[weight] = shape
        return self.plain(operator, x, weight, **attributes)


def vgg16(net: Network) -> str:
    """Simonyan and Zisserman 2014, configuration D."""
    x, wide = "image", 3
    for width, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(layers):
            x, wide = net.plain("Relu", net.conv(x, wide, width, 3)), width
        x = net.plain("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.plain("Flatten", x)
    for wide, out in ((512 * 49, 4096), (4096, 4096), (4096, 1000)):
        x = net.linear(x, wide, out)
    return x


def resnet50(net: Network) -> str:
    """He et al. 2015, with the stride on the 3 x 3 convolution as in torchvision."""
    x = net.conv("image", 3, 64, 7, stride=2)
    x = net.plain("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    wide = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = net.conv(x, wide, width, 1)
            y = net.conv(y, width, width, 3, stride=stride)
            y = net.conv(y, width, 4 * width, 1)
            shortcut = x if block else net.conv(x, wide, 4 * width, 1, stride=stride)
            x, wide = net.plain("Add", y, shortcut), 4 * width
    return net.linear(net.plain("Flatten", net.plain("GlobalAveragePool", x)), wide, 1000)


@pytest.mark.parametrize(
    ("build", "name", "steps"),
    [(vgg16, "torchvision:vgg16", 13 + 5 + 3), (resnet50, "torchvision:resnet50", 53 + 2 + 1)],
)
def test_known_networks_have_their_known_operations(
    tmp_path: Path, build: object, name: str, steps: int
) -> None:
    net = Network()
    output = build(net)
    path = write(
        tmp_path / "graph.onnx",
        net.nodes,
        {},
        image=["N", 3, 224, 224],
        inputs=net.weights,
        output=output,
    )
    counted = cost(path, outputs=[output])
    published = next(row["operations"] for row in available() if row["name"] == name)
    assert counted.multiply_adds == {"fp32": published}
    assert len(counted.steps) == steps


def test_an_exported_network_has_the_operations_that_torch_counts(
    imagenet_repository: Path,
) -> None:
    path = imagenet_repository / "efficientnet_lite0" / "1" / "model.onnx"
    row = next(row for row in available() if row["name"] == "package:efficientnet_lite0")
    one, eight = cost(path), cost(path, batch=8)
    assert one.multiply_adds == {"fp32": row["operations"]}
    assert eight.multiply_adds == {"fp32": 8 * row["operations"]}
    assert eight.weights == one.weights
    # All weights are read, and besides them the normalisation's constants and indices.
    assert 4 * row["parameters"] - 200_000 < one.weights < 4 * row["parameters"] + 20_000
    with_map = cost(path, outputs=["logits", "cam.cam"])
    # The map of one class is a product of its weights with 1,280 planes of 7 x 7.
    assert sum(with_map.multiply_adds.values()) - row["operations"] == 1280 * 49


def test_the_peaks_are_measured_on_products_that_are_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peaks, "SECONDS", 0.01)
    measured = peaks.measure(1, size=64, copy_bytes=1 << 20)
    assert {peak.precision for peak in measured.products} == {"fp32", "fp16", "int8"}
    assert measured.copy_bytes_per_second > 0
    weights = np.random.default_rng(0).standard_normal((64, 64))
    values = np.random.default_rng(1).random((64, 64), dtype=np.float32)
    expected = values @ np.linalg.matrix_power(weights / 8, peaks.PRODUCTS)
    for _, open_graph in bare_engines():
        result = open_graph(peaks.products("fp32", weights), threads=1)(values)
        np.testing.assert_allclose(result, expected, atol=1e-3)


MADE_UP = Peaks(
    threads=2,
    products=tuple(
        ProductPeak(precision=precision, backend="made up", operations_per_second=rate)
        for precision, rate in (("fp32", 1e6), ("fp16", 2e6), ("int8", 4e6))
    ),
    copy_bytes_per_second=1e6,
)


def test_the_floor_is_the_sum_of_each_steps_longer_side(tmp_path: Path) -> None:
    nodes, weights = residual()
    path = write(tmp_path / "graph.onnx", nodes, weights, image=["N", 3, 8, 8])
    counted = cost(path, batch=2)
    # The first convolution computes for 27.6 ms and copies for 4 ms; the others copy for longer.
    copies = sum(step.bytes for step in counted.steps[1:]) / 1e6
    assert roofline.floor_seconds(counted, MADE_UP) == pytest.approx(2 * 13824 / 1e6 + copies)
    products = 13824 + 512 + 80
    assert roofline.compute_seconds(counted, MADE_UP) == pytest.approx(2 * products / 1e6)


def test_each_case_gets_its_distance_and_a_gpu_none(colours: Bundle) -> None:
    plain = measurement((4.0, 5.0, 6.0), batch=2)
    with_map = measurement((4.0, 4.0, 4.0), outputs="cam")
    case = plain.case.model_copy(update={"device": "cuda:0"})
    on_gpu = plain.model_copy(update={"case": case})
    asked: list[int] = []

    def made_up(threads: int) -> Peaks:
        asked.append(threads)
        return MADE_UP

    found, refusals = roofline.run([plain, with_map, on_gpu], {"colours": colours}, measure=made_up)
    assert asked == [2]
    assert [floor.case for floor in found.floors] == [plain.case, with_map.case]
    floor = found.floors[0]
    # No product: the pictures are read as bytes, their planes written and read again as floats.
    planes = 4 * 2 * 3 * 64
    assert floor.multiply_adds == {}
    assert floor.compute_ms == 0
    assert floor.moved_bytes >= 2 * 192 + 2 * planes
    assert floor.floor_ms == pytest.approx(floor.moved_bytes / 1e3)
    assert floor.memory_ms == pytest.approx(floor.floor_ms)
    assert floor.distance == pytest.approx(5.0 / floor.floor_ms)
    assert [r.reason for r in refusals] == ["the peaks of a GPU are not measured"]
