"""ONNX files by what stands at their end: served are the scores that ONNX Runtime gives them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import skimage
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from foveate_client import Client, Prepared
from foveate_export.commands import export as export_command
from foveate_export.errors import ExportError, UsageError
from foveate_export.existing import Existing, export_existing, open_existing
from foveate_export.pictures import PHOTOGRAPHS, Pictures, shipped
from foveate_runtime.backends.registry import create_runner
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.bundle.scores import score
from foveate_runtime.commands import evaluate, verify

SPEC = InputSpec(
    height=32,
    width=40,
    channels=3,
    resize=48,
    interpolation="bilinear",
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.25),
)
LABELS = ["coffee", "cat", "rocket", "cup", "other"]
ALL_MAPS = ("cam", "gradcam", "hirescam", "layercam")


def node(kind: str, takes: str, gives: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(kind, takes.split(), gives.split(), **attributes)


def file_of(
    path: Path,
    end: list[onnx.NodeProto],
    *,
    classes: int = 5,
    opset: int = 17,
    out: list | None = None,
    start: list[onnx.NodeProto] | None = None,
    batch: int | str = "n",
    **constants: np.ndarray,
) -> Path:
    """Write a network whose pooled linear layer gives z, and `end`, from z to y."""
    draws = np.random.default_rng(5)
    weights = {
        "kernel": draws.normal(size=(6, 3, 5, 5)) * 0.3,
        "weight": draws.normal(size=(classes, 6)),
        "bias": draws.normal(size=classes),
    }
    body = [
        node("Conv", "x kernel", "maps", strides=[4, 4], name="conv"),
        node("Relu", "maps", "active", name="relu"),
        node("GlobalAveragePool", "active", "pooled"),
    ]
    flat = [node("Flatten", "pooled", "flat"), node("Gemm", "flat weight bias", "z", transB=1)]
    held = {name: value.astype(np.float32) for name, value in weights.items()} | constants
    graph = helper.make_graph(
        [*body, *(flat if start is None else start), *end],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 32, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out or [batch, classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def photographs() -> Pictures:
    return shipped(SPEC)


def own_outputs(path: Path, pictures: Pictures) -> np.ndarray:
    """What the file itself says, one picture at a time: float32 [N, classes]."""
    session = onnxruntime.InferenceSession(path)
    scaled = (pictures.images / 255 - SPEC.mean) / SPEC.std
    pixels = scaled.transpose(0, 3, 1, 2).astype(np.float32)
    outputs = [session.run(["y"], {"x": picture[None]})[0].reshape(-1) for picture in pixels]
    return np.stack(outputs).astype(np.float32)


class Served(NamedTuple):
    scores: np.ndarray
    methods: tuple[str, ...]
    bundle: Bundle


def served(
    source: Existing, folder: Path, pictures: Pictures, labels: list[str] = LABELS
) -> Served:
    """Export, verify, and return the scores of the pictures, all at once."""
    done = export_existing(
        source, labels, repository=folder / "models", name="net", pictures=pictures
    )
    assert verify.main([str(done.path)]) == 0
    bundle = Bundle.open(done.path)
    with create_runner(bundle, backend="onnxruntime") as runner:
        logits = runner.run({"image": pictures.images}, ["logits"])["logits"]
    assert bundle.manifest.assumptions["scores"] == done.manifest.assumptions["scores"]
    methods = tuple(cam.method for cam in bundle.manifest.cams)
    return Served(score(logits, bundle.manifest.scores), methods, bundle)


SOFTMAX = node("Softmax", "z", "s", axis=1)
AXES = {"axes": np.array([1], np.int64)}
SHAPE = {"shape": np.array([0, 5], np.int64)}
BOUNDS = {"low": np.float32(1e-7), "high": np.float32(1 - 1e-7)}
EXPONENTIALS = [
    node("ReduceMax", "z", "most", axes=[1], keepdims=1),
    node("Sub", "z most", "shifted"),
    node("Exp", "shifted", "e"),
]

SOFTMAXES = {
    "softmax": ([node("Softmax", "z", "y", axis=1)], {}),
    "last axis": ([node("Softmax", "z", "y", axis=-1)], {}),
    "log-softmax": ([node("LogSoftmax", "z", "y", axis=1)], {}),
    "logarithm": ([SOFTMAX, node("Log", "s", "y")], {}),
    "exponential": (
        [node("LogSoftmax", "z", "l", axis=1), node("Exp", "l", "y")], {}),
    "identity": ([SOFTMAX, node("Identity", "s", "y")], {}),
    "identities": ([SOFTMAX, node("Identity", "s", "t"), node("Identity", "t", "y")], {}),
    "dropout": ([SOFTMAX, node("Dropout", "s", "y")], {}),
    "cast": ([SOFTMAX, node("Cast", "s", "d", to=TensorProto.DOUBLE),
              node("Cast", "d", "y", to=TensorProto.FLOAT)], {}),
    "flatten": ([SOFTMAX, node("Flatten", "s", "y")], {}),
    "reshape": ([SOFTMAX, node("Reshape", "s shape", "y")], SHAPE),
    "clip": ([SOFTMAX, node("Clip", "s low high", "y")], BOUNDS),
    "squeezed": ([node("Unsqueeze", "z axes", "u"), node("Softmax", "u", "s", axis=2),
                  node("Squeeze", "s axes", "y")], AXES),
    "between": ([node("Identity", "z", "a"), node("Reshape", "a shape", "b"),
                 node("Dropout", "b", "c"), node("Softmax", "c", "y")], SHAPE),
    "written out": ([*EXPONENTIALS, node("ReduceSum", "e axes", "sum", keepdims=1),
                     node("Div", "e sum", "y")], AXES),
    "written out with a reciprocal": (
        [*EXPONENTIALS, node("ReduceSum", "e axes", "sum", keepdims=1),
         node("Reciprocal", "sum", "r"), node("Mul", "r e", "y")], AXES),
    "written out without a maximum": (
        [node("Exp", "z", "e"), node("ReduceSum", "e axes", "sum", keepdims=1),
         node("Div", "e sum", "d"), node("Identity", "d", "y")], AXES),
}  # fmt: skip


@pytest.mark.parametrize("end", SOFTMAXES)
def test_a_softmax_is_taken_off_whatever_surrounds_it(
    tmp_path: Path, photographs: Pictures, end: str
) -> None:
    nodes, constants = SOFTMAXES[end]
    path = file_of(tmp_path / "net.onnx", nodes, **constants)
    source = open_existing(path, SPEC, pictures=photographs)
    assert source.ending.normaliser is not None
    got = served(source, tmp_path, photographs)
    outputs = own_outputs(path, photographs)
    expected = np.exp(outputs) if "log" in end else outputs
    np.testing.assert_allclose(got.scores, expected, atol=1e-5)
    assert expected.max() > 0.5, "a second softmax would show"
    assert got.methods == ALL_MAPS
    assert got.bundle.manifest.assumptions["scores"] == source.ending.said


def test_a_clip_before_the_softmax_is_kept(tmp_path: Path, photographs: Pictures) -> None:
    nodes = [node("Clip", "z low high", "c"), node("Softmax", "c", "y", axis=1)]
    bounds = {"low": np.float32(-0.5), "high": np.float32(0.5)}
    path = file_of(tmp_path / "net.onnx", nodes, **bounds)
    got = served(open_existing(path, SPEC), tmp_path, photographs)
    np.testing.assert_allclose(got.scores, own_outputs(path, photographs), atol=1e-5)
    assert got.methods == ()


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 15, 18, 21])
@pytest.mark.parametrize("shape", ["flat", "cells"])
def test_a_softmax_means_what_its_opset_says(
    tmp_path: Path, photographs: Pictures, opset: int, shape: str
) -> None:
    """Before opset 13 it flattens from its axis, which is 1 where the file says nothing."""
    if shape == "flat":
        start, out = None, ["n", 5]
    else:
        start, out = [node("Conv", "pooled kernel1", "z")], ["n", 5, 1, 1]
    kernel = np.random.default_rng(1).normal(size=(5, 6, 1, 1)).astype(np.float32)
    attributes = {} if opset < 13 else {"axis": 1}
    path = file_of(
        tmp_path / "net.onnx", [node("Softmax", "z", "y", **attributes)],
        opset=opset, start=start, out=out, kernel1=kernel,
    )  # fmt: skip
    got = served(open_existing(path, SPEC), tmp_path, photographs)
    np.testing.assert_allclose(got.scores, own_outputs(path, photographs), atol=1e-5)
    assert got.methods == ALL_MAPS


def test_a_softmax_over_other_cells_is_none_of_the_classes(
    tmp_path: Path, photographs: Pictures
) -> None:
    """From opset 13 on the last axis is taken: of a single cell, each softmax is 1."""
    path = file_of(
        tmp_path / "net.onnx",
        [node("Unsqueeze", "z axes", "u"), node("Softmax", "u", "y")],
        out=["n", 5, 1],
        axes=np.array([2]),
    )
    assert (own_outputs(path, photographs) == 1).all()
    with pytest.raises(ExportError, match="lie between 0 and 1 on 12 pictures and come from Soft"):
        open_existing(path, SPEC)


@pytest.mark.parametrize("opset", [9, 13, 17])
@pytest.mark.parametrize("end", ["identity", "dropout", "cast", "reshape", "nothing"])
def test_logits_are_served_whatever_follows_them(
    tmp_path: Path, photographs: Pictures, end: str, opset: int
) -> None:
    nodes, constants = {
        "identity": ([node("Identity", "z", "y")], {}),
        "dropout": ([node("Dropout", "z", "y")], {}),
        "cast": ([node("Cast", "z", "y", to=TensorProto.FLOAT)], {}),
        "reshape": ([node("Reshape", "z shape", "y")], SHAPE),
        "nothing": ([], {}),
    }[end]
    flat = [node("Flatten", "pooled", "flat")]
    gives = "z" if nodes else "y"
    start = [*flat, node("Gemm", "flat weight bias", gives, transB=1)]
    path = file_of(tmp_path / "net.onnx", nodes, start=start, opset=opset, **constants)
    got = served(open_existing(path, SPEC), tmp_path, photographs)
    expected = score(own_outputs(path, photographs), "softmax")
    np.testing.assert_allclose(got.scores, expected, atol=1e-5)
    assert got.methods == ALL_MAPS
    assert got.bundle.manifest.scores == "softmax"


SIGMOIDS = {
    "sigmoid": [node("Sigmoid", "z", "y")],
    "identity": [node("Sigmoid", "z", "s"), node("Identity", "s", "y")],
    "clip": [node("Sigmoid", "z", "s"), node("Clip", "s low high", "y")],
    "logarithm": [node("Sigmoid", "z", "s"), node("Log", "s", "y")],
    "written out": [node("Neg", "z", "n1"), node("Exp", "n1", "e"), node("Add", "e one", "t"),
                    node("Div", "one t", "y")],
    "reciprocal": [node("Neg", "z", "n1"), node("Exp", "n1", "e"), node("Add", "one e", "t"),
                   node("Reciprocal", "t", "y")],
}  # fmt: skip


@pytest.mark.parametrize("end", SIGMOIDS)
def test_sigmoids_give_each_label_a_score_by_itself(
    tmp_path: Path, photographs: Pictures, end: str
) -> None:
    constants = {"one": np.ones(1, np.float32)} | BOUNDS
    path = file_of(tmp_path / "net.onnx", SIGMOIDS[end], **constants)
    got = served(open_existing(path, SPEC), tmp_path, photographs)
    outputs = own_outputs(path, photographs)
    expected = np.exp(outputs) if end == "logarithm" else outputs
    assert got.bundle.manifest.scores == "sigmoid"
    np.testing.assert_allclose(got.scores, expected, atol=1e-5)
    assert got.methods == ALL_MAPS


def test_an_average_of_softmaxes_is_served_by_its_logarithm(
    tmp_path: Path, photographs: Pictures
) -> None:
    nodes = [
        SOFTMAX,
        node("Neg", "z", "m"),
        node("Softmax", "m", "t", axis=1),
        node("Mean", "s t", "y"),
    ]
    path = file_of(tmp_path / "net.onnx", nodes)
    source = open_existing(path, SPEC)
    got = served(source, tmp_path, photographs)
    np.testing.assert_allclose(got.scores, own_outputs(path, photographs), atol=1e-5)
    assert (source.ending.form, got.methods) == ("logarithm", ())


@pytest.mark.parametrize("wanted", ["sigmoid", "softmax", "none", None])
def test_scores_of_an_operator_that_says_nothing_are_the_users_to_name(
    tmp_path: Path, photographs: Pictures, wanted: str | None
) -> None:
    path = file_of(tmp_path / "net.onnx", [node("HardSigmoid", "z", "y", name="gate")])
    if wanted is None:
        with pytest.raises(
            ExportError, match="come from HardSigmoid 'gate', no softmax or sigmoid: say"
        ):
            open_existing(path, SPEC)
        return
    got = served(open_existing(path, SPEC, scores=wanted), tmp_path, photographs)
    outputs = own_outputs(path, photographs)
    assert got.bundle.manifest.scores == wanted
    expected = score(outputs, "softmax") if wanted == "softmax" else outputs
    np.testing.assert_allclose(got.scores, expected, atol=1e-5)


def test_numbers_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    """As those of a file for devices that count in bytes."""
    nodes = [SOFTMAX, node("Mul", "s most", "m"), node("Cast", "m", "y", to=TensorProto.UINT8)]
    path = file_of(tmp_path / "net.onnx", nodes, most=np.float32(255))
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    onnx.save(model, path)
    with pytest.raises(ExportError, match="the output y is UINT8; floating-point numbers are"):
        open_existing(path, SPEC)


def test_percentages_are_not_taken_for_logits(tmp_path: Path) -> None:
    nodes = [SOFTMAX, node("Mul", "s most", "y", name="percent")]
    path = file_of(tmp_path / "net.onnx", nodes, most=np.float32(100))
    with pytest.raises(ExportError, match="sum to 100 on 12 pictures and come from Mul 'percent'"):
        open_existing(path, SPEC)


def test_small_rectified_logits_are_no_scores(tmp_path: Path, photographs: Pictures) -> None:
    """As those of SqueezeNet, whose class map is rectified, before it is trained."""
    path = file_of(tmp_path / "net.onnx", [node("Mul", "z small", "m"), node("Relu", "m", "y")],
                   small=np.float32(0.01))  # fmt: skip
    outputs = own_outputs(path, photographs)
    assert outputs.min() >= 0
    assert outputs.max() < 1
    got = served(open_existing(path, SPEC), tmp_path, photographs)
    assert got.bundle.manifest.scores == "softmax"
    np.testing.assert_allclose(got.scores, score(outputs, "softmax"), atol=1e-5)


ONE = {
    "logit": [node("Identity", "z", "y")],
    "sigmoid": [node("Sigmoid", "z", "y")],
    "squeezed": [node("Squeeze", "z axes", "q"), node("Sigmoid", "q", "y")],
}


@pytest.mark.parametrize("end", ONE)
@pytest.mark.parametrize("labels", [["dog"], ["cat", "dog"]])
def test_one_output_is_two_classes_with_maps_of_either_side(
    tmp_path: Path, photographs: Pictures, end: str, labels: list[str]
) -> None:
    path = file_of(tmp_path / "net.onnx", ONE[end], classes=1, **AXES,
                   out=["n"] if end == "squeezed" else None)  # fmt: skip
    got = served(open_existing(path, SPEC), tmp_path, photographs, labels)
    outputs = own_outputs(path, photographs)[:, 0]
    high = outputs if end != "logit" else score(outputs[:, None], "sigmoid")[:, 0]
    np.testing.assert_allclose(got.scores, np.stack([1 - high, high], 1), atol=1e-5)
    assert np.ptp(high) > 0.01
    assert got.bundle.labels == ("not dog" if len(labels) == 1 else "cat", "dog")
    assert got.methods == ALL_MAPS
    with create_runner(got.bundle, backend="onnxruntime") as runner:
        inputs = {"image": photographs.images, "class_ids": np.tile([0, 1], (5, 1))}
        found = runner.run(inputs, ["logits", "cam.cam"])
    maps = found["cam.cam"]
    assert np.abs(maps).max() > 0
    np.testing.assert_allclose(maps[:, 0], -maps[:, 1], atol=1e-6)
    bias = np.random.default_rng(5)
    bias.normal(size=(6, 3, 5, 5)), bias.normal(size=(1, 6))
    offset = bias.normal(size=1) * [-0.5, 0.5]
    np.testing.assert_allclose(maps.mean((2, 3)) + offset, found["logits"], atol=1e-4)


def test_a_class_map_of_one_class_has_two_sides(tmp_path: Path, photographs: Pictures) -> None:
    """SqueezeNet's end, for one class: the mean of the one channel is the logit."""
    draws = np.random.default_rng(2)
    start = [node("Conv", "active kernel1", "one"), node("GlobalAveragePool", "one", "p"),
             node("Flatten", "p", "z")]  # fmt: skip
    path = file_of(tmp_path / "net.onnx", [node("Sigmoid", "z", "y")], classes=1, start=start,
                   kernel1=draws.normal(size=(1, 6, 1, 1)).astype(np.float32))  # fmt: skip
    got = served(open_existing(path, SPEC), tmp_path, photographs, ["dog"])
    high = own_outputs(path, photographs)
    np.testing.assert_allclose(got.scores, np.concatenate([1 - high, high], 1), atol=1e-5)
    assert "cam" in got.methods


def test_one_output_stays_one_label_where_the_user_says_sigmoid(
    tmp_path: Path, photographs: Pictures
) -> None:
    path = file_of(tmp_path / "net.onnx", ONE["sigmoid"], classes=1)
    source = open_existing(path, SPEC, scores="sigmoid")
    got = served(source, tmp_path, photographs, ["dog"])
    np.testing.assert_allclose(got.scores, own_outputs(path, photographs), atol=1e-5)
    assert got.bundle.manifest.scores == "sigmoid"
    with pytest.raises(UsageError, match="3 labels for the one output of"):
        served(source, tmp_path, photographs, LABELS[:3])


@pytest.mark.parametrize("end", ["softmax", "sigmoid", "logits"])
@pytest.mark.parametrize("order", ["as converted", "sorted"])
def test_float16_with_float32_inputs_and_outputs(
    tmp_path: Path, photographs: Pictures, end: str, order: str
) -> None:
    nodes = {
        "softmax": [node("Softmax", "z", "y", axis=1)],
        "sigmoid": [node("Sigmoid", "z", "y")],
        "logits": [node("Identity", "z", "y")],
    }[end]
    single = onnx.load(file_of(tmp_path / "single.onnx", nodes))
    half = convert_float_to_float16(single, keep_io_types=True)
    if order == "sorted":
        first = [each for each in half.graph.node if "x" in each.input]
        rest = [each for each in half.graph.node if "x" not in each.input]
        del half.graph.node[:]
        half.graph.node.extend([*first, *rest])
    path = tmp_path / "net.onnx"
    onnx.save(half, path)
    got = served(open_existing(path, SPEC), tmp_path, photographs)
    outputs = own_outputs(path, photographs)
    expected = score(outputs, "softmax") if end == "logits" else outputs
    np.testing.assert_allclose(got.scores, expected, atol=2e-3)
    assert got.methods == ALL_MAPS
    assert [variant.name for variant in got.bundle.manifest.variants] == ["fp16"]
    assert got.bundle.manifest.features


class Ended(nn.Module):
    """Convolution, mean, a linear layer, and `end`."""

    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.ReLU())
        self.fc = nn.Linear(8, 5)
        with torch.no_grad():
            self.fc.weight *= 12
        self.end = end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.fc(self.body(x).mean((2, 3))))


@pytest.mark.parametrize("opset", [9, 12, 17, None])
@pytest.mark.parametrize(
    "end",
    [
        nn.Softmax(1),
        nn.LogSoftmax(1),
        nn.Sigmoid(),
        nn.LogSigmoid(),
        lambda z: z[:, :, None, None].softmax(1).flatten(1),
        lambda z: z.softmax(1).clamp(1e-7, 1 - 1e-7),
    ],
    ids=["softmax", "log-softmax", "sigmoid", "log-sigmoid", "another axis", "clamp"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ends_as_torchs_exporters_write_them(
    tmp_path: Path, photographs: Pictures, end, opset: int | None
) -> None:
    """By the older exporter in several opsets, or by the newer one."""
    path, pixels = tmp_path / "net.onnx", torch.zeros(2, 3, 32, 40)
    names = {"input_names": ["x"], "output_names": ["y"]}
    if opset is None:
        dynamic = ({0: torch.export.Dim.DYNAMIC},)
        torch.onnx.export(
            Ended(end).eval(), (pixels,), path, dynamic_shapes=dynamic, verbose=False, **names
        )
    else:
        axes = {"x": {0: "n"}, "y": {0: "n"}}
        torch.onnx.export(
            Ended(end).eval(), (pixels,), path, dynamo=False, opset_version=opset,
            dynamic_axes=axes, **names,
        )  # fmt: skip
    source = open_existing(path, SPEC)
    assert source.ending.normaliser is not None
    got = served(source, tmp_path, photographs)
    outputs = own_outputs(path, photographs)
    np.testing.assert_allclose(
        got.scores, np.exp(outputs) if (outputs < 0).any() else outputs, atol=1e-5
    )
    assert got.methods == ALL_MAPS


def test_nodes_out_of_order_are_sorted(tmp_path: Path, photographs: Pictures) -> None:
    path = file_of(tmp_path / "net.onnx", [node("Softmax", "z", "y", axis=1)])
    expected = own_outputs(path, photographs)
    model = onnx.load(path)
    backwards = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(backwards)
    onnx.save(model, path)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(path)
    got = served(open_existing(path, SPEC), tmp_path, photographs)
    np.testing.assert_allclose(got.scores, expected, atol=1e-5)


def test_nodes_that_go_round_in_a_circle_are_refused(tmp_path: Path) -> None:
    start = [node("Add", "pooled back", "sum"), node("Identity", "sum", "back"),
             node("Flatten", "sum", "z")]  # fmt: skip
    path = file_of(tmp_path / "net.onnx", [node("Identity", "z", "y")], start=start)
    with pytest.raises(ExportError, match=r"net\.onnx: "):
        open_existing(path, SPEC)


@pytest.mark.parametrize("end", ["Softmax", "Sigmoid"])
def test_a_fixed_batch_before_the_end(tmp_path: Path, photographs: Pictures, end: str) -> None:
    nodes = [node("Reshape", "z shape", "r"), node(end, "r", "s"), node("Reshape", "s shape", "y")]
    path = file_of(tmp_path / "net.onnx", nodes, batch=1, shape=np.array([1, 5], np.int64))
    got = served(open_existing(path, SPEC), tmp_path, photographs)
    np.testing.assert_allclose(got.scores, own_outputs(path, photographs), atol=1e-5)


def test_names_that_an_optimiser_changed_are_found_again(
    tmp_path: Path, photographs: Pictures
) -> None:
    """Inner Identities, as those of tf2onnx, go when constants are folded."""
    start = [
        node("Identity", "active", "kept/Identity:0"),
        node("GlobalAveragePool", "kept/Identity:0", "mean"),
        node("Identity", "mean", "mean:1"),
        node("Flatten", "mean:1", "flat"),
        node("Gemm", "flat weight bias", "z", transB=1),
    ]
    path = file_of(tmp_path / "net.onnx", [SOFTMAX, node("Identity", "s", "y")], start=start)
    source = open_existing(path, SPEC)
    got = served(source, tmp_path, photographs)
    np.testing.assert_allclose(got.scores, own_outputs(path, photographs), atol=1e-5)
    assert got.methods == ALL_MAPS


def test_the_command_says_what_it_assumed_and_serves_it(
    tmp_path: Path, photographs: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(tmp_path / "net.onnx", SIGMOIDS["sigmoid"])
    (tmp_path / "input.json").write_text(SPEC.model_dump_json())
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    repository = tmp_path / "models"
    arguments = [
        str(path), "--input-spec", str(tmp_path / "input.json"),
        "--labels", str(tmp_path / "labels.txt"), "--repository", str(repository), "--name", "net",
    ]  # fmt: skip
    assert export_command.main([*arguments, "--scores", "softmax"]) == 2
    assert "(the network ends in a sigmoid)" in capsys.readouterr().err
    assert export_command.main(arguments) == 0
    said = capsys.readouterr().out
    assert "\nscores: sigmoid, taken off the end of the network; each label has" in said
    picture = photographs.images[0]
    (expected,) = own_outputs(path, Pictures(picture[None], "one"))
    with Client.local(repository) as client:
        model = client.model("net")
        assert model.scores == "sigmoid"
        assert model.assumptions["scores"].startswith("sigmoid, taken off the end")
        result = client.classify(Prepared(picture), threshold=0.5)
    assert result.scores == "sigmoid"
    present = {LABELS[index]: expected[index] for index in np.flatnonzero(expected >= 0.5)}
    assert 0 < len(present) < len(LABELS)
    got = {prediction.label: prediction.score for prediction in result.predictions}
    assert got == pytest.approx(present, abs=1e-5)


def test_labels_are_evaluated_by_themselves(
    tmp_path: Path, photographs: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(tmp_path / "net.onnx", SIGMOIDS["sigmoid"])
    served(open_existing(path, SPEC), tmp_path, photographs)
    capsys.readouterr()
    outputs = own_outputs(path, photographs)
    present = outputs >= 0.5
    present[0, :2] ^= True
    present[3, 2] ^= True
    photos = Path(skimage.__file__).parent / "data"
    rows = [
        f"{photos / name},{';'.join(np.array(LABELS)[row])}"
        for name, row in zip(PHOTOGRAPHS, present, strict=True)
    ]
    table = tmp_path / "val.csv"
    table.write_text("\n".join(["picture,labels", *rows]) + "\n")
    arguments = ["--repository", str(tmp_path / "models"), "--model", "net", "--data"]
    assert evaluate.main([*arguments, str(table), "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert (got["images"], got["data"], got["threshold"]) == (5, "val.csv", 0.5)
    found = outputs >= 0.5
    for label, each, f, p in zip(LABELS, got["labels"], found.T, present.T, strict=True):
        assert (each["label"], each["images"]) == (label, p.sum())
        assert each["f1"] == pytest.approx(2 * (f & p).sum() / max(1, f.sum() + p.sum()))
    seen = [each for each in got["labels"] if each["images"]]
    assert len(seen) > 0
    assert 0 < got["f1"] < 1
    for summary, name in (("f1", "f1"), ("mean_average_precision", "average_precision")):
        assert got[summary] == pytest.approx(np.mean([each[name] for each in seen]))
    assert evaluate.main([*arguments, str(table), "--threshold", "1"]) == 0
    said = capsys.readouterr().out
    assert "F1 0.00% from a score of 1 on, of 5 pictures (val.csv)" in said
    assert evaluate.main([*arguments, str(table), "--threshold", "50"]) == 2
    assert "--threshold 50 is not between 0 and 1" in capsys.readouterr().err
    assert evaluate.main([*arguments, str(tmp_path), "--threshold", "0.5"]) == 2
    assert "--threshold goes with a table" in capsys.readouterr().err
