"""Scales of int8 weights by which processors without VNNI add products exactly.

There engines multiply unsigned by signed bytes with `vpmaddubsw`, which adds the
products of two neighbours in 16 bits and cuts off what does not fit (Intel 64
Architectures Software Developer's Manual, PMADDUBSW). An activation is 255 at most,
so that two neighbours fit when the sum of those with one sign is 128 at most:
128 x 255 = 32640. The usual scale takes the largest weight of a channel to 127; here
it is the largest such sum. So a channel's steps grow by a third in the mean, and twofold
at most, as seven bits would have them grow in every channel.

Which weights are neighbours is the engine's affair: those of adjacent input
channels, or of adjacent places in the kernel's row. Both must fit. The kernels of
depthwise convolutions add in 32 bits.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

LARGEST = 127
"""What the largest sum of two is scaled to; each may be rounded up by a half."""


def fit_pairs(graph: onnx.GraphProto, weights: Mapping[str, onnx.TensorProto]) -> None:
    """Quantise the weights of a quantised graph again, so that pairs of products fit 16 bits.

    Args:
        graph: with QDQ pairs by onnxruntime.quantization, one scale an output
            channel. Its int8 weights, their scales and those of the biases change.
        weights: the float weights by name.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dequantised = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    for node in graph.node:
        weight = dequantised.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None or weight.input[0] not in constants:
            continue
        if _is_depthwise(node, constants[weight.input[0]]):
            continue
        values = _value(weights, weight.input[0].removesuffix("_quantized"))
        axis = next((a.i for a in weight.attribute if a.name == "axis"), 1)
        before = _value(constants, weight.input[1])
        after = np.maximum(before, largest_sums(np.moveaxis(values, axis, 0)) / LARGEST)
        after = after.astype(np.float32)
        along = np.expand_dims(after, [i for i in range(values.ndim) if i != axis])
        _set(constants, weight.input[0], np.rint(values / along).astype(np.int8))
        _set(constants, weight.input[1], after)
        bias = dequantised.get(node.input[2]) if len(node.input) > 2 else None
        if bias is not None:
            # An engine takes a bias as it stands: its scale is the input's times the weight's.
            ratio = after / before
            sums = _value(constants, bias.input[0]) / ratio
            _set(constants, bias.input[0], np.rint(sums).astype(np.int32))
            scale = _value(constants, bias.input[1]) * ratio
            _set(constants, bias.input[1], scale.astype(np.float32))


def largest_sums(weights: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the largest sum of two neighbours with one sign, by output channel.

    Args:
        weights: [channels, inputs] or [channels, inputs, height, width].
    """
    last = np.moveaxis(weights, 1, -1)
    first, second = (_largest_sums(w.reshape(len(w), -1)) for w in (weights, last))
    larger: NDArray[np.floating] = np.maximum(first, second)
    return larger


def _largest_sums(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    padded = np.pad(rows, ((0, 0), (0, 1)))
    signs = (np.maximum(padded, 0), np.maximum(-padded, 0))
    above, below = ((values[:, :-1] + values[:, 1:]).max(axis=1) for values in signs)
    larger: NDArray[np.floating] = np.maximum(above, below)
    return larger


def _is_depthwise(node: onnx.NodeProto, weight: onnx.TensorProto) -> bool:
    """Return whether each output channel has one input channel of its own."""
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    return group > 1 and [*weight.dims[:2]] == [group, 1]


def _value(constants: Mapping[str, onnx.TensorProto], name: str) -> NDArray[np.float64]:
    return numpy_helper.to_array(constants[name]).astype(np.float64)


def _set(constants: Mapping[str, onnx.TensorProto], name: str, value: NDArray[np.generic]) -> None:
    constants[name].CopyFrom(numpy_helper.from_array(value, name))
