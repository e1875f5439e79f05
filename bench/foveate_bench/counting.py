"""What a graph costs: its multiplications and the bytes that it moves, counted from the file."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from foveate_runtime.backends.onnxruntime.pruning import OnnxFile
from foveate_runtime.bundle.manifest import CLASS_IDS_INPUT, IMAGE_INPUT

Precision = Literal["fp32", "fp16", "int8"]
"""The type that products are computed in; fp16 stands for both halves, float16 and bfloat16."""

_PRODUCTS = {
    "Conv": 1,
    "ConvInteger": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
}
"""The operators that multiply matrices, and which of their inputs the second factor is."""

_VIEWS = frozenset(
    {
        "DequantizeLinear",
        "Dropout",
        "Flatten",
        "Identity",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators that an engine has for nothing: it may keep a tensor in any order, and reads
quantised numbers as they are."""

_POINTWISE = frozenset(
    {
        "Abs",
        "Add",
        "And",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "PRelu",
        "Pow",
        "QuantizeLinear",
        "Reciprocal",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Sub",
        "Tanh",
        "Where",
    }
)
"""Operators that an engine applies to a result before it leaves the processor."""

_UNCOUNTED = frozenset(
    {"Attention", "DeformConv", "Einsum", "GRU", "If", "LSTM", "Loop", "RNN", "Scan"}
)
"""Operators with products that are not counted here."""

_OWN_DOMAIN = ("", "ai.onnx")

_HALVES = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
_BYTES = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
_INDICES = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
"""The types that shapes and indices are computed in."""

_SMALL = 1024
"""Numbers of a constant that is worked out: shapes and indices, not weights."""


class CountingError(Exception):
    """A graph that cannot be counted; the message names the node."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A node with the pointwise nodes behind it, which engines merge into one kernel.

    `multiply_adds` are the multiplications, each with its addition, in the type
    `precision`. `weights` are the bytes of constants that are read here first,
    `read` those of other tensors from memory, `written` those that other steps
    or the caller read.
    """

    name: str
    operator: str
    precision: Precision
    multiply_adds: int
    weights: int
    read: int
    written: int

    @property
    def bytes(self) -> int:
        """All bytes that go from or to memory."""
        return self.weights + self.read + self.written


@dataclass(frozen=True, kw_only=True)
class GraphCost:
    """The steps of a graph for one batch, in the order of the file."""

    steps: tuple[Step, ...]

    @cached_property
    def multiply_adds(self) -> dict[Precision, int]:
        """The multiply-adds in each type that occurs."""
        counts: dict[Precision, int] = {}
        for step in self.steps:
            if step.multiply_adds:
                counts[step.precision] = counts.get(step.precision, 0) + step.multiply_adds
        return counts

    @property
    def bytes(self) -> int:
        """The bytes that all steps move."""
        return sum(step.bytes for step in self.steps)

    @property
    def weights(self) -> int:
        """The bytes of weights, each counted once."""
        return sum(step.weights for step in self.steps)


def count(path: Path, *, batch: int, outputs: Collection[str], classes: int = 1) -> GraphCost:
    """Count what leads to `outputs` in an ONNX file, for a batch with `classes` to explain each.

    Raises:
        OSError: the file cannot be read.
        CountingError: it is no ONNX file, has an operator that is not counted,
            or a tensor whose shape cannot be inferred.
    """
    try:
        model = onnx.load_model_from_string(OnnxFile(path).prune(outputs))
    except ValueError as error:
        raise CountingError(f"{path.name}: {error}") from error
    for node in model.graph.node:
        if node.domain not in _OWN_DOMAIN or node.op_type in _UNCOUNTED:
            raise CountingError(
                f"the node {node.name or node.output[0]} ({node.op_type}): "
                "this operator is not counted"
            )
    _fix_inputs(model.graph, batch=batch, classes=classes)
    weights = _without_values(model.graph)
    inferred = _infer(model)
    constants = weights | {tensor.name for tensor in inferred.graph.initializer}
    return GraphCost(steps=tuple(_Counter(inferred.graph, constants, outputs).steps()))


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    dtype: int
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * helper.tensor_dtype_to_np_dtype(self.dtype).itemsize


def _fix_inputs(graph: onnx.GraphProto, *, batch: int, classes: int) -> None:
    sizes = {IMAGE_INPUT: (batch,), CLASS_IDS_INPUT: (batch, classes)}
    for value in graph.input:
        for dim, size in zip(
            value.type.tensor_type.shape.dim, sizes.get(value.name, ()), strict=False
        ):
            dim.dim_value = size


def _without_values(graph: onnx.GraphProto) -> set[str]:
    """Make inputs of the weights, so that hundreds of megabytes are not copied; their names."""
    large = [tensor for tensor in graph.initializer if prod(tensor.dims) > _SMALL]
    for tensor in large:
        graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
        graph.initializer.remove(tensor)
    return {tensor.name for tensor in large}


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with the shapes of its tensors.

    What is computed from shapes is worked out on the way, since the shapes of
    others may come from it.
    """
    # What the exporter noted has free dimensions.
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    while True:
        try:
            inferred = shape_inference.infer_shapes(model, data_prop=True)
        except shape_inference.InferenceError as error:
            raise CountingError(f"the shapes cannot be inferred: {error}") from error
        if not _fold(model, _tensors(inferred.graph)):
            return inferred


def _fold(model: onnx.ModelProto, tensors: Mapping[str, _Tensor]) -> bool:
    """Replace nodes whose results are known by constants; tell whether there were any."""
    graph = model.graph
    known = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        # Others are weights, be they ever so small, and counted as the file has them.
        if tensor.data_type in _INDICES
    }
    left = []
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in tensors:
            part = slice(*(_integer(node, name) for name in ("start", "end")))
            results = [np.array(tensors[node.input[0]].shape[part], dtype=np.int64)]
        elif all(not n or n in known for n in node.input):
            results = _evaluate(node, known, model.opset_import)
        else:
            left.append(node)
            continue
        for name, value in zip(node.output, results, strict=True):
            known[name] = np.asarray(value)
            graph.initializer.append(numpy_helper.from_array(known[name], name))
    folded = len(left) < len(graph.node)
    del graph.node[:]
    graph.node.extend(left)
    return folded


def _evaluate(
    node: onnx.NodeProto,
    known: Mapping[str, NDArray[Any]],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> list[NDArray[Any]]:
    feed = {name: known[name] for name in node.input if name}
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in feed.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = helper.make_graph([node], "node", inputs, outputs)
    results = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, feed)
    return [np.asarray(result) for result in results]


def _tensors(graph: onnx.GraphProto) -> dict[str, _Tensor]:
    """Return the tensors of a graph whose shapes are known."""
    tensors = {
        tensor.name: _Tensor(dtype=tensor.data_type, shape=tuple(tensor.dims))
        for tensor in graph.initializer
    }
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        dims = kind.shape.dim
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shape = tuple(dim.dim_value for dim in dims)
            tensors[value.name] = _Tensor(dtype=kind.elem_type, shape=shape)
    return tensors


class _Counter:
    """Merges the nodes of a graph to steps and counts them.

    A step has the index of its first node. A pointwise node belongs to the
    latest step that it reads from, so that no step waits for a later one.
    """

    def __init__(
        self, graph: onnx.GraphProto, constants: set[str], outputs: Collection[str]
    ) -> None:
        self._nodes = graph.node
        self._tensors = _tensors(graph)
        self._constants = set(constants)
        # A view stands for the tensor that it shows.
        self._shown: dict[str, str] = {}
        self._step_of: dict[str, int] = {}
        self._members: dict[int, list[onnx.NodeProto]] = {}
        for index, node in enumerate(self._nodes):
            self._place(index, node)
        self._read_by: dict[str, set[int]] = {self._source(name): {-1} for name in outputs}
        for step, members in self._members.items():
            for name in self._inputs(members):
                self._read_by.setdefault(name, set()).add(step)

    def steps(self) -> Iterator[Step]:
        """Yield the steps."""
        loaded: set[str] = set()
        for index, members in self._members.items():
            first = members[0]
            inputs = {name for name in self._inputs(members) if self._step_of.get(name) != index}
            weights = inputs & self._constants - loaded
            loaded |= weights
            written = {
                name
                for node in members
                for name in node.output
                if self._read_by.get(name, set()) - {index}
            }
            precision, multiply_adds = self._products(first)
            yield Step(
                name=first.name or first.output[0],
                operator=first.op_type,
                precision=precision,
                multiply_adds=multiply_adds,
                weights=self._bytes(weights),
                read=self._bytes(inputs - self._constants),
                written=self._bytes(written),
            )

    def _place(self, index: int, node: onnx.NodeProto) -> None:
        inputs = [name for name in node.input if name]
        if all(name in self._constants for name in inputs):
            # Worked out when the graph is loaded.
            self._constants.update(node.output)
        if node.op_type in _VIEWS:
            self._shown[node.output[0]] = self._source(node.input[0])
            return
        if node.output[0] in self._constants:
            return
        before = [self._step_of[s] for s in map(self._source, inputs) if s in self._step_of]
        step = max(before) if node.op_type in _POINTWISE and before else index
        self._members.setdefault(step, []).append(node)
        self._step_of.update(dict.fromkeys(node.output, step))

    def _source(self, name: str) -> str:
        return self._shown.get(name, name)

    def _inputs(self, nodes: Iterable[onnx.NodeProto]) -> set[str]:
        return {self._source(name) for node in nodes for name in node.input if name}

    def _bytes(self, names: Iterable[str]) -> int:
        return sum(self._tensor(name).bytes for name in names)

    def _tensor(self, name: str) -> _Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CountingError(f"{name}: the shape of this tensor cannot be inferred") from None

    def _products(self, node: onnx.NodeProto) -> tuple[Precision, int]:
        """Return the type of a node's products and their number."""
        if node.op_type not in _PRODUCTS:
            return "fp32", 0
        first, second = node.input[0], node.input[_PRODUCTS[node.op_type]]
        types = {self._tensor(self._source(name)).dtype for name in (first, second)}
        if types <= _BYTES:
            precision: Precision = "int8"
        else:
            precision = "fp16" if types <= _HALVES else "fp32"
        left, right = self._tensor(first).shape, self._tensor(second).shape
        results = prod(self._tensor(node.output[0]).shape)
        if node.op_type == "ConvTranspose":
            return precision, prod(left) * prod(right[1:])
        if "Conv" in node.op_type:
            return precision, results * prod(right[1:])
        if node.op_type == "Gemm":
            return precision, results * left[0 if _integer(node, "transA") else 1]
        return precision, results * left[-1]


def _integer(node: onnx.NodeProto, name: str) -> int | None:
    return next((a.i for a in node.attribute if a.name == name), None)
