"""What leads to the outputs wanted is left of a graph, and computes them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from foveate_runtime.backends.onnxruntime.pruning import OnnxFile
from foveate_runtime.bundle.bundle import Bundle


def names(values: list[onnx.ValueInfoProto]) -> list[str]:
    return [value.name for value in values]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_plain_request_leaves_nothing_of_the_maps(colours: Bundle) -> None:
    file = OnnxFile(colours.file("fp32"))
    assert file.inputs == ["image", "class_ids"]
    assert file.outputs == ["logits", "cam.cam", "features.planes"]
    plain = onnx.load_from_string(file.prune(["logits"]))
    onnx.checker.check_model(plain, full_check=True)
    assert operators(plain) == ["Cast", "Mul", "Transpose", "ReduceMean", "Add"]
    assert names(plain.graph.input) == ["image"]
    assert names(plain.graph.output) == ["logits"]
    whole = onnx.load(colours.file("fp32"))
    assert list(plain.graph.initializer) == list(whole.graph.initializer)
    assert plain.opset_import == whole.opset_import


def test_with_every_output_the_graph_is_as_it_was(colours: Bundle) -> None:
    file = OnnxFile(colours.file("fp32"))
    assert onnx.load_from_string(file.prune(file.outputs)) == onnx.load(colours.file("fp32"))


def test_what_was_read_does_not_stay_resident(colours: Bundle) -> None:
    file = OnnxFile(colours.file("fp32"))

    def resident() -> int:
        _, _, mapping = (
            Path("/proc/self/smaps").read_text("utf-8").partition(str(colours.file("fp32")))
        )
        return int(mapping.partition("Rss:")[2].split()[0])

    assert resident() > 0
    file.prune(["logits"])
    assert resident() == 0


@pytest.fixture
def save(tmp_path: Path) -> Callable[[onnx.GraphProto], Path]:
    def write(graph: onnx.GraphProto) -> Path:
        opset = [helper.make_opsetid("", 20)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    return write


def test_what_a_branch_reads_from_outside_stays(save: Callable[[onnx.GraphProto], Path]) -> None:
    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("Identity", [name], [f"{name}_chosen"])
        value = helper.make_tensor_value_info(f"{name}_chosen", TensorProto.FLOAT, [2])
        return helper.make_graph([node], name, [], [value])

    floats = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y", "z")
    ]
    flag = numpy_helper.from_array(np.array(False), "flag")
    path = save(
        helper.make_graph(
            [
                helper.make_node("Neg", ["x"], ["negative"]),
                helper.make_node("Abs", ["x"], ["absolute"]),
                helper.make_node("Exp", ["x"], ["z"]),
                helper.make_node(
                    "If",
                    ["flag"],
                    ["y"],
                    then_branch=branch("negative"),
                    else_branch=branch("absolute"),
                ),
            ],
            "branches",
            floats[:1],
            floats[1:],
            [flag],
        )
    )
    pruned = OnnxFile(path).prune(["y"])
    assert operators(onnx.load_from_string(pruned)) == ["Neg", "Abs", "If"]
    session = onnxruntime.InferenceSession(pruned)
    (answer,) = session.run(None, {"x": np.array([-1, 2], dtype=np.float32)})
    np.testing.assert_array_equal(answer, [1, 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no graph", "unknown kind 6"),
        (b"\x08\x0a", "it holds 0 graphs"),
        (b"\x3a\x05\x0a", "ends behind its message"),
        (b"\x3a\xff", "ends behind its message"),
        (b"", "empty"),
    ],
)
def test_what_is_no_graph_is_a_value_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        OnnxFile(path)


def test_a_graph_is_straight_unless_a_node_or_the_model_holds_another(
    colours: Bundle, tmp_path: Path
) -> None:
    assert OnnxFile(colours.file("fp32")).straight
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, [])
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Constant", [], ["value"], value_float=number)], name, [], [value]
        )
        for name, number in (("then", 1.0), ("else", 0.0))
    }
    choice = helper.make_graph(
        [helper.make_node("If", ["flag"], ["value"], **branches)], "choice", [flag], [value]
    )
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    function = helper.make_function(
        "own", "Same", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], opset[:1]
    )
    call = helper.make_graph(
        [helper.make_node("Same", ["value"], ["same"], domain="own")],
        "call",
        [value],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, [])],
    )
    for graph, functions in ((choice, []), (call, [function])):
        path = tmp_path / f"{graph.name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opset, functions=functions), path)
        assert not OnnxFile(path).straight
