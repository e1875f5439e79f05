"""Single rows of weights in a narrow type, for the maps that read them.

A class activation map reads the rows of a few classes of the classifier's
weight. Dequantised as a whole, for every request, that weight costs more time
than its layer gains in int8; cast from float16 as a whole, TensorRT holds it a
second time. So the rows are gathered as they are, and these alone are widened.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze"})
_GATHERS = frozenset({"Gather", "GatherElements", "GatherND"})
_LAST = "rows.last"


def read_by_rows(graph: onnx.GraphProto, makers: Mapping[str, onnx.NodeProto]) -> set[str]:
    """Return the tensors of which something gathers parts, and those that they are reshaped from.

    Args:
        graph: the graph.
        makers: its nodes by the tensors that they return.
    """
    found = set()
    waiting = [node.input[0] for node in graph.node if node.op_type in _GATHERS]
    while waiting:
        name = waiting.pop()
        found.add(name)
        maker = makers.get(name)
        if maker is not None and maker.op_type in _RESHAPES:
            waiting.append(maker.input[0])
    return found


def gives_rows(graph: onnx.GraphProto, weight: str) -> bool:
    """Whether all that is gathered of `weight` are whole rows of it, by GatherND.

    Which is how the exporter writes `weight[classes]`: with the index of one
    axis, the first.
    """
    widths = {
        value.name: value.type.tensor_type.shape.dim[-1].dim_value
        for value in graph.value_info
        if value.type.tensor_type.shape.dim
    }
    gathers = [n for n in graph.node if n.op_type in _GATHERS and n.input[0] == weight]
    return bool(gathers) and all(
        node.op_type == "GatherND"
        and not any(attribute.i for attribute in node.attribute)  # no batch axes
        and widths.get(node.input[1]) == 1
        for node in gathers
    )


def gather_first(graph: onnx.GraphProto) -> None:
    """Let what gathers rows of a widened weight gather them before they are widened.

    A weight is widened by DequantizeLinear, with one scale a row and zero point
    0, or by a Cast. Either stays for what else reads its result.
    """
    weights = {tensor.name for tensor in graph.initializer}
    wide = {
        node.output[0]: node
        for node in graph.node
        if node.op_type in ("DequantizeLinear", "Cast") and node.input[0] in weights
    }
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        widening = wide.get(node.input[0]) if node.op_type == "GatherND" else None
        if widening is None:
            nodes.append(node)
        elif widening.op_type == "Cast":
            nodes += _cast_rows(widening.input[0], node.input[1], node.output[0])
        else:
            quantised, scales, _ = widening.input
            nodes += _scaled_rows(quantised, scales, node.input[1], node.output[0])
    if any(_LAST in node.input for node in nodes):
        graph.initializer.append(numpy_helper.from_array(np.array([-1]), _LAST))
    del graph.node[:]
    graph.node.extend(nodes)


def _cast_rows(weight: str, rows: str, result: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("GatherND", [weight, rows], [f"{result}.narrow"], name=f"rows.{result}"),
        helper.make_node(
            "Cast", [f"{result}.narrow"], [result], name=f"rows.{result}.cast", to=TensorProto.FLOAT
        ),
    ]


def _scaled_rows(quantised: str, scales: str, rows: str, result: str) -> list[onnx.NodeProto]:
    steps: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("GatherND", [quantised, rows], f"{result}.int8", {}),
        ("Cast", [f"{result}.int8"], f"{result}.float", {"to": TensorProto.FLOAT}),
        ("GatherND", [scales, rows], f"{result}.scale", {}),
        ("Unsqueeze", [f"{result}.scale", _LAST], f"{result}.scales", {}),
        ("Mul", [f"{result}.float", f"{result}.scales"], result, {}),
    )
    return [
        helper.make_node(kind, inputs, [output], name=f"rows.{output}", **options)
        for kind, inputs, output, options in steps
    ]
