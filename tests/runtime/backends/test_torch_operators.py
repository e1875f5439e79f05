"""torch does what ONNX says, by the ONNX project's own test cases for each operator."""

import importlib
import pkgutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.backend.test.case import node as cases
from onnx.backend.test.case.test_case import TestCase as Case

from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.torch import graph
from foveate_runtime.backends.torch.graph import TorchGraph
from foveate_runtime.backends.torch.operators import OPERATORS

WITHOUT_CASES = {"AveragePool", "Cast", "MaxPool", "Range"}
"""Those of Range have no types, those of Cast exotic ones, and those of pools take seconds to
generate: bundles that use these operators are compared with the other engines instead."""

TYPES = {"bool", "float16", "float32", "float64", "int8", "int32", "int64", "uint8"}

REFUSED = (
    "autopad_same",
    "blocked",
    "edge_pad",
    "reflect_pad",
    "reduce_max_empty_set",
    "reduce_min_empty_set",
    "select_last_index",
    "training_mode",
    "wrap_pad",
)
"""What the exporter never writes: it must be refused, and not done otherwise."""


def collect() -> dict[str, list[Case]]:
    """Return the cases of one node with types that classifiers have, by operator."""
    wanted = {name.lower() for name in OPERATORS.keys() - WITHOUT_CASES}
    for module in pkgutil.iter_modules(cases.__path__):
        if module.name.replace("_", "") in wanted:
            importlib.import_module(f"{cases.__name__}.{module.name}")
    found: dict[str, list[Case]] = {name: [] for name in OPERATORS}
    for case in cases._NodeTestCases:
        nodes = case.model.graph.node
        arrays = [array for inputs, outputs in case.data_sets for array in (*inputs, *outputs)]
        if (
            len(nodes) == 1
            and nodes[0].op_type in OPERATORS
            and all(isinstance(a, np.ndarray) and a.dtype.name in TYPES for a in arrays)
        ):
            found[nodes[0].op_type].append(case)
    return found


@pytest.fixture(scope="module")
def collected() -> dict[str, list[Case]]:
    with np.errstate(all="ignore"):
        return collect()


def run(model: onnx.ModelProto, inputs: list[np.ndarray], folder: Path) -> list[np.ndarray]:
    path = folder / "model.onnx"
    onnx.save(model, path)
    loaded = TorchGraph(path, torch.device("cpu"))
    # The second output of a normalisation is for training.
    outputs = loaded.outputs[:1] if "Normal" in model.graph.node[0].op_type else loaded.outputs
    feed = {name: torch.tensor(a) for name, a in zip(loaded.inputs, inputs, strict=True)}
    results = loaded.run(loaded.program(outputs), feed, outputs)
    return [results[name].numpy() for name in outputs]


@pytest.mark.parametrize("operator", sorted(OPERATORS.keys() - WITHOUT_CASES))
def test_an_operator_does_what_onnx_says(
    collected: dict[str, list[Case]],
    operator: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The cases are of the opset that changed the operator last, whatever it changed.
    monkeypatch.setattr(graph, "OPSETS", range(1, 99))
    assert collected[operator]
    for case in collected[operator]:
        (inputs, expected), *_ = case.data_sets
        if any(word in case.name for word in REFUSED):
            with pytest.raises(BackendError):
                run(case.model, inputs, tmp_path)
            continue
        for result, wanted in zip(run(case.model, inputs, tmp_path), expected, strict=False):
            assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape), case.name
            np.testing.assert_allclose(result, wanted, case.rtol, 1e-6, err_msg=case.name)


def test_axes_may_be_an_attribute_as_they_were_before_opset_18(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 7), dtype=np.float32)
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    (result,) = run(one_node(node, opset=13, rank=4), [x], tmp_path)
    np.testing.assert_allclose(result, x.mean((2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 2]},
    ],
)
@pytest.mark.parametrize("operator", ["AveragePool", "MaxPool"])
def test_a_pool_does_what_onnx_runtime_does(
    operator: str, options: dict[str, object], tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 7), dtype=np.float32)
    model = one_node(helper.make_node(operator, ["x"], ["y"], **options), rank=4)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (wanted,) = session.run(["y"], {"x": x})
    (result,) = run(model, [x], tmp_path)
    assert result.shape == wanted.shape
    np.testing.assert_allclose(result, wanted, rtol=1e-6, atol=1e-6)


def one_node(node: onnx.NodeProto, *, opset: int = 20, rank: int = 1) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)
    return helper.make_model(
        helper.make_graph([node], "one", [x], [y]),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (one_node(helper.make_node("Sin", ["x"], ["y"])), r"\(Sin\): torch has no such operator"),
        (one_node(helper.make_node("Relu", ["x"], ["y"], domain="x.y")), "no such operator"),
        (one_node(helper.make_node("Elu", ["x"], ["y"], gamma=1.0)), "argument 'gamma'"),
        (one_node(helper.make_node("Relu", ["x"], ["y"]), opset=12), "opset 12; torch runs"),
    ],
)
def test_a_graph_that_cannot_run_is_refused_when_it_is_loaded(
    model: onnx.ModelProto, message: str, tmp_path: Path
) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BackendError, match=message):
        TorchGraph(tmp_path / "model.onnx", torch.device("cpu"))
