"""Finds the operator at the end of an ONNX graph: a softmax, a sigmoid, or another.

Exporters, converters and optimisers leave nodes behind it that change at most the
shape, the type or the extremes of its numbers. A softmax may be written out as
exponentials over their sum.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from foveate_export.anatomy.ending import NORMALISERS, Normaliser
from foveate_export.existing.head import KEEPING_ORDER, constant, described, keeps_order

_ROUNDING = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear", "Clip"})

_POOLING = frozenset(
    {"GlobalAveragePool", "AveragePool", "ReduceMean", "GlobalMaxPool", "MaxPool", "ReduceMax"}
)
_LINEAR = frozenset(
    {"Gemm", "MatMul", "Conv", "Einsum", "BatchNormalization", "LayerNormalization"}
    | {"MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm", "FusedGemm"}
    | {"FusedConv", "FusedMatMul"}
)
_KEEPING_SIZE = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Elu", "Celu", "Selu", "Gelu", "HardSwish", "Mish", "Neg"}
    | {"Add", "Sub", "Mul", "Div", "Sum", "Mean", "Concat", "Slice", "Gather", "Transpose"}
)
"""Operators whose values may have any size where all that they take may."""


def behind(value: ir.Value, *, rounded: bool = False) -> Iterator[ir.Value]:
    """Yield a value and those before it that hold the same numbers in another shape.

    With `rounded` also those in another type, or with other extremes.
    """
    while True:
        yield value
        node = value.producer()
        source = node.inputs[0] if node is not None and node.inputs else None
        if node is None or source is None:
            return
        if not keeps_order(node) and not (rounded and node.op_type in _ROUNDING):
            return
        value = source


def find_normaliser(output: ir.Value) -> tuple[Normaliser, ir.Value] | None:
    """Return the softmax or sigmoid at the end of the graph, and the value that it takes."""
    value = _last(output)
    node = value.producer()
    logarithm = node is not None and node.op_type == "Log"
    if node is not None and logarithm and node.inputs[0] is not None:
        value = _last(node.inputs[0])
    for kind, taken in (
        ("softmax", _softmax(value)),
        ("sigmoid", _taken(value, "Sigmoid") or _written_sigmoid(value)),
        ("log_softmax", _taken(value, "LogSoftmax")),
    ):
        if taken is not None:
            wrapped = logarithm and not kind.startswith("log")
            return NORMALISERS[f"log_{kind}" if wrapped else kind], taken
    return None


def is_plain(value: ir.Value | None) -> bool:
    """Whether the operators that compute a value leave it any size, as a linear layer does."""
    node = value.producer() if value is not None else None
    if value is None or node is None:
        # A constant, or the picture.
        return True
    if node.op_type in _LINEAR:
        return True
    if node.op_type == "Clip":
        largest = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        return (largest is None or largest.item() > 1) and is_plain(node.inputs[0])
    if node.op_type in KEEPING_ORDER | _ROUNDING | _POOLING:
        return is_plain(node.inputs[0])
    return node.op_type in _KEEPING_SIZE and all(is_plain(given) for given in node.inputs)


def operator(output: ir.Value) -> str:
    """Return what computes the numbers of an output, for people."""
    return described(_last(output))


def _last(value: ir.Value) -> ir.Value:
    *_, last = behind(value, rounded=True)
    return last


def _taken(value: ir.Value, operator: str) -> ir.Value | None:
    node = value.producer()
    return node.inputs[0] if node is not None and node.op_type == operator else None


def _softmax(value: ir.Value) -> ir.Value | None:
    """Return x where `value` is the softmax of x, in one operator or several."""
    logarithm = _taken(value, "Exp")
    if logarithm is not None:
        return _taken(_last(logarithm), "LogSoftmax")
    return _taken(value, "Softmax") or _written_softmax(value)


def _written_softmax(value: ir.Value) -> ir.Value | None:
    """Return x where `value` is exp(x) over its sum, whatever was subtracted of x before."""
    quotient = _quotient(value)
    if quotient is None:
        return None
    exponential, total = quotient
    node = exponential.producer()
    if _taken(total, "ReduceSum") is not exponential or node is None or node.op_type != "Exp":
        return None
    shifted = node.inputs[0]
    below = shifted.producer() if shifted is not None else None
    if below is None or below.op_type != "Sub" or below.inputs[1] is None:
        return shifted
    # Against overflow; what a softmax is does not depend on it.
    whole = below.inputs[0]
    return whole if _taken(below.inputs[1], "ReduceMax") is whole else shifted


def _written_sigmoid(value: ir.Value) -> ir.Value | None:
    """Return x where `value` is 1 / (1 + exp(-x))."""
    total = _taken(value, "Reciprocal")
    quotient = _quotient(value)
    if quotient is not None and _is_one(quotient[0]):
        total = quotient[1]
    node = total.producer() if total is not None else None
    if node is None or node.op_type != "Add":
        return None
    for one, given in (node.inputs, node.inputs[::-1]):
        exponent = _taken(given, "Exp") if _is_one(one) and given is not None else None
        if exponent is not None:
            return _taken(exponent, "Neg")
    return None


def _quotient(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Return a and b where `value` is a / b, or a times the reciprocal of b."""
    node = value.producer()
    if node is None or node.op_type not in ("Div", "Mul"):
        return None
    first, second = node.inputs[0], node.inputs[1]
    if first is None or second is None:
        return None
    if node.op_type == "Div":
        return first, second
    for numerator, factor in ((first, second), (second, first)):
        below = _taken(factor, "Reciprocal")
        if below is not None:
            return numerator, below
    return None


def _is_one(value: ir.Value | None) -> bool:
    found = constant(value)
    return found is not None and bool(np.all(found == 1))
