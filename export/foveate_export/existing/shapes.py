"""The shapes of an ONNX graph: any number of pictures, of the size that the specification says."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from foveate_export.errors import ExportError
from foveate_export.existing.file import Layout, serialised
from foveate_export.existing.head import constant
from foveate_export.existing.session import open_session
from foveate_runtime.backends.onnxruntime.session import ENGINE_ERRORS
from foveate_runtime.bundle.manifest import InputSpec

_BATCHES = (2, 3)
"""How many pictures the graph is run on, to see which axes are theirs."""

_FAILURES: tuple[type[Exception], ...] = (ExportError, *ENGINE_ERRORS)


def make_batch_dynamic(graph: ir.Graph, image: ir.Value) -> int | None:
    """Take the number of pictures out of the graph; return what it was, None for any number.

    Shapes that were written down for that number keep their first axis instead.
    Whether that was all is seen when the graph runs with another number.
    """
    batch = image.shape[0] if image.shape is not None else None
    if not isinstance(batch, int):
        return None
    pictured = {image}
    for node in graph:
        # Weights have no axis of pictures, and some converters reshape them here.
        if not pictured.intersection(node.inputs):
            continue
        pictured.update(node.outputs)
        shape = constant(node.inputs[1]) if node.op_type == "Reshape" else None
        if shape is None or shape.ndim != 1 or not len(shape) or shape[0] != batch:
            continue
        if 0 in shape[1:] and "allowzero" in node.attributes:
            continue
        _reshape(graph, node, [0, *(int(size) for size in shape[1:])])
    return batch


def infer_shapes(model: ir.Model, image: ir.Value, spec: InputSpec, layout: Layout) -> None:
    """Drop the shapes that the file notes, and find those that follow from `spec`.

    What cannot be inferred is measured: some converters compute the shape of a Reshape from
    that of the pictures. Such a Reshape gets the shape as a constant.
    """
    size = (spec.height, spec.width)
    image.shape = ir.Shape(
        ["N", spec.channels, *size] if layout == "nchw" else ["N", *size, spec.channels]
    )
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    # Exporters leave arithmetic on sizes behind, such as that of padding.
    fold_constants(model, onnx_shape_inference=True)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    unknown = [
        value
        for node in model.graph
        for value in node.outputs
        if _is_unknown(value) or (node.op_type == "Reshape" and constant(node.inputs[1]) is None)
    ]
    if unknown:
        sizes = (spec.channels, *size) if layout == "nchw" else (*size, spec.channels)
        _measure(model, unknown, str(image.name), sizes)


def _is_unknown(value: ir.Value) -> bool:
    """Whether the size of an axis is not known that may be any but the pictures'."""
    # Of operators of ONNX Runtime's own, such as FusedConv, nothing is inferred.
    if value.dtype is not None and not value.dtype.is_floating_point():
        return False
    return value.shape is None or not all(isinstance(axis, int) for axis in value.shape.dims[1:])


def _measure(
    model: ir.Model, values: Sequence[ir.Value], image: str, sizes: tuple[int, ...]
) -> None:
    """Give values the shapes that they have when the graph runs, where it does."""
    try:
        session = open_session(serialised(model, values), Path(image))
        runs = [
            session.run(None, {image: np.zeros((batch, *sizes), dtype=np.float32)})
            for batch in _BATCHES
        ]
    except _FAILURES:
        # Whether the graph takes several pictures is seen, and said, when the bundle runs.
        return
    for value, *results in zip(values, *runs, strict=True):
        shapes = [np.shape(result) for result in results]
        if len({len(shape) for shape in shapes}) == 1:
            axes: list[int | str | None] = [
                found[0] if len(set(found)) == 1 else "N" if found == _BATCHES else None
                for found in zip(*shapes, strict=True)
            ]
            value.shape = ir.Shape(axes)
            node, known = value.producer(), [axis for axis in axes if isinstance(axis, int)]
            if node is not None and node.op_type == "Reshape" and axes == ["N", *known]:
                _reshape(model.graph, node, [-1, *known])


def _reshape(graph: ir.Graph, node: ir.Node, sizes: Sequence[int]) -> None:
    """Give a Reshape these sizes as a constant; 0 keeps an axis, -1 is what is left."""
    # With this attribute a 0 would be the axis's size.
    node.attributes.pop("allowzero", None)
    value = ir.Value(
        name=f"{node.name or node.outputs[0].name}.any_batch",
        const_value=ir.tensor(list(sizes), ir.DataType.INT64),
    )
    graph.register_initializer(value)
    node.replace_input_with(1, value)
