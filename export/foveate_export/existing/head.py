"""Average pooling and a linear layer at the end of an ONNX graph, found backwards from the logits.

The mathematics are those of `foveate_export.graph.heads`, whose module of the same
name says where they come from. Here nothing runs: a node is what its operator
and its shapes say.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from foveate_export.anatomy import pooled
from foveate_export.anatomy.ending import SIDES
from foveate_export.errors import UnsupportedHeadError

KEEPING_ORDER = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout"})
"""Operators that change at most the shape of a vector for each picture."""


@dataclass(frozen=True)
class Linear:
    """A linear layer: `value` holds its weights, `weight` is what they are, [classes, C].

    The value is None where the graph has no such weights. `classes_last` tells that
    it is [C, classes]. A convolution's value has two more axes, of one cell.
    """

    value: ir.Value | None
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    classes_last: bool
    alpha: float


@dataclass(frozen=True)
class PooledHead:
    """What lies between the last map and the logits.

    Attributes:
        activations: the map, [N, C, height, width], or with its channels last.
        channels_last: whether they are.
        height: of the map, in cells.
        width: likewise.
        linear: the layer after the mean over the cells; None where the mean of
            a channel is the logit.
    """

    activations: ir.Value
    channels_last: bool
    height: int
    width: int
    linear: Linear | None

    @property
    def methods(self) -> tuple[str, ...]:
        """The maps that the graph can compute, the default first."""
        return pooled.METHODS if self.linear else ("cam",)

    @property
    def description(self) -> str:
        """What stands between the map and the logits, in a few words."""
        return pooled.DESCRIPTION if self.linear else "one map a class, averaged"


def find_head(logits: ir.Value) -> PooledHead:
    """Return the head whose output is `logits`.

    Raises:
        UnsupportedHeadError: the graph does not end in this way; says where it differs.
    """
    value = _skip(logits)
    mean, linear = value, None
    if not _is_pooling(value):
        linear, below = _find_linear(value)
        mean = _skip(below)
        if not _is_pooling(mean):
            raise UnsupportedHeadError(
                f"before the last linear layer stands {described(mean)}, which is no average "
                "over a whole map"
            )
    producer = mean.producer()
    activations = producer.inputs[0] if producer else None
    shape = _shape(activations)
    if activations is None or shape is None:
        raise UnsupportedHeadError(f"the size of the map before {described(mean)} is not known")
    channels_last = _axes(producer) == (1, 2) if producer else False
    cells = shape[:2] if channels_last else shape[1:]
    channels = shape[2] if channels_last else shape[0]
    if prod(cells) == 1:
        raise UnsupportedHeadError("the last map has a single cell")
    if linear is not None and linear.weight.shape[1] != channels:
        raise UnsupportedHeadError(
            f"the last linear layer takes {linear.weight.shape[1]} values, "
            f"and the map before it has {channels} channels"
        )
    return PooledHead(activations, channels_last, *cells, linear)


def two_sided(head: PooledHead) -> PooledHead:
    """Return the head of the logits -z/2 and z/2 where `head` is that of the one output z."""
    linear = head.linear
    # Where the mean of the map's one channel is z, its weight is 1.
    weight = linear.weight if linear else np.ones((1, 1), np.float32)
    bias = linear.bias if linear else np.zeros(1, np.float32)
    sides = np.array(SIDES, np.float32)
    both = Linear(None, sides[:, None] * weight, sides * bias, classes_last=False, alpha=1.0)
    return replace(head, linear=both)


def constant(value: ir.Value | None) -> NDArray[np.float32] | None:
    """Return what a value is where the file says it, or None where it depends on the picture."""
    tensor = value.const_value if value is not None and not value.is_graph_input() else None
    return None if tensor is None else tensor.numpy()


def _find_linear(value: ir.Value) -> tuple[Linear, ir.Value]:
    """Return the linear layer that computes `value`, and its input."""
    bias = None
    node = value.producer()
    if node is not None and node.op_type == "Add":
        for part, other in (node.inputs, node.inputs[::-1]):
            found = constant(other)
            if found is not None and part is not None:
                bias, node = found, part.producer()
                break
    if node is None or node.op_type not in {"Gemm", "MatMul", "Conv"}:
        raise UnsupportedHeadError(f"the logits come from {described(value)}, no linear layer")
    below, weights = node.inputs[0], node.inputs[1]
    weight = constant(weights)
    if below is None or weights is None or weight is None:
        raise UnsupportedHeadError(f"the weights of {_named(node)} are no constants")
    attributes = node.attributes
    if node.op_type == "Conv" and weight.shape[2:] != (1, 1):
        raise UnsupportedHeadError(f"{_named(node)} is no 1x1 convolution")
    if node.op_type == "Gemm" and attributes.get_int("transA", 0) != 0:
        raise UnsupportedHeadError(f"{_named(node)} transposes its input")
    classes_last = node.op_type == "MatMul" or (
        node.op_type == "Gemm" and attributes.get_int("transB", 0) == 0
    )
    flat = weight.reshape(weight.shape[0], -1) if node.op_type == "Conv" else weight
    if flat.ndim != 2 or attributes.get_int("group", 1) != 1:
        raise UnsupportedHeadError(f"{_named(node)} is no single linear layer")
    own = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    alpha = attributes.get_float("alpha", 1.0)
    rows = flat.T if classes_last else flat
    rows = rows.astype(np.float32)
    zeros = np.zeros(len(rows), np.float32)
    added = (zeros if bias is None else bias.reshape(-1)) + (
        zeros if own is None else own.reshape(-1) * attributes.get_float("beta", 1.0)
    )
    return Linear(weights, rows * alpha, added, classes_last, alpha), below


def keeps_order(node: ir.Node) -> bool:
    """Whether a node leaves the numbers of a picture and their order alone, but for their type."""
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm", ())
        return bool(perm) and perm[0] == 0 and _is_vector(node.inputs[0])
    return node.op_type in KEEPING_ORDER or node.op_type == "Cast"


def _skip(value: ir.Value) -> ir.Value:
    """Go back over nodes that leave the numbers of a picture and their order alone."""
    while True:
        node = value.producer()
        source = node.inputs[0] if node and node.inputs else None
        if node is None or source is None or not keeps_order(node):
            return value
        shape = source.shape
        if shape is not None and len(shape) == 4 and not _is_vector(source):
            # A whole map, flattened, is not a vector of means.
            return value
        value = source


def _is_vector(value: ir.Value | None) -> bool:
    shape = _shape(value)
    return shape is not None and sorted(shape)[:2] == [1, 1]


def _is_pooling(value: ir.Value) -> bool:
    """Whether a value is the mean over all cells of a map."""
    node = value.producer()
    if node is None or not node.inputs:
        return False
    if node.op_type == "GlobalAveragePool":
        return True
    shape = _shape(node.inputs[0])
    if shape is None:
        return False
    if node.op_type == "ReduceMean":
        return _axes(node) in {(2, 3), (1, 2)}
    if node.op_type != "AveragePool":
        return False
    kernel = node.attributes.get_ints("kernel_shape", ())
    pads = node.attributes.get_ints("pads", ())
    return tuple(kernel) == shape[1:] and not any(pads)


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """Return the axes of a mean, of a tensor with four, counted from the front and sorted."""
    if node.op_type != "ReduceMean":
        return (2, 3)
    axes: Sequence[int] | None = node.attributes.get_ints("axes", None)
    if axes is None and len(node.inputs) > 1:
        given = constant(node.inputs[1])
        axes = None if given is None else [int(axis) for axis in given]
    return None if axes is None else tuple(sorted(axis % 4 for axis in axes))


def _shape(value: ir.Value | None) -> tuple[int, int, int] | None:
    """Return the shape of a map behind the axis of the pictures, or None where it is not one."""
    shape = value.shape if value is not None else None
    if shape is None or len(shape) != 4:
        return None
    sizes = tuple(size for size in shape.dims[1:] if isinstance(size, int))
    return sizes if len(sizes) == 3 else None


def _named(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type


def described(value: ir.Value) -> str:
    """Return what computes a value, for people."""
    node = value.producer()
    return f"the graph's own {value.name!r}" if node is None else _named(node)
