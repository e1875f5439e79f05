"""Which nodes of a graph leave the range of float16, measured on pictures.

A half is 65504 at most, and below 2^-14 it loses bits until nothing is left at 2^-25
(IEEE 754-2019, binary16). What a float32 graph computes is therefore looked at tensor
by tensor: a CPU would not show it, since ONNX Runtime computes a float16 graph in
float32 there. Sums within a node count as well, for not every engine adds halves in
float32.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator

from foveate_export.publish.variants.quantise import Reader, batches
from foveate_runtime.bundle.manifest import CLASS_IDS_INPUT

LARGEST = 2.0**14
"""A quarter of the largest half: other pictures reach further than those measured."""

SMALLEST = 2.0**-14
"""A tensor without a larger value holds nothing but subnormal halves."""

_ADDENDS = 2
"""What stands behind the first two inputs is added, where too small a value does no harm."""


def loud_nodes(source: Path, images: NDArray[np.uint8]) -> list[str]:
    """Return the nodes that reach out of float16's range, or take what does.

    Args:
        source: the float graph, with the shapes of its tensors.
        images: the pictures to measure on, uint8 [N, H, W, C].
    """
    graph = onnx.load(source).graph
    constants = {
        tensor.name: float(np.abs(numpy_helper.to_array(tensor)).max(initial=0))
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    measured = _largest(
        source, images, explained=any(i.name == CLASS_IDS_INPUT for i in graph.input)
    )
    sizes = dict(_sizes(graph))
    return [node.name for node in graph.node if _is_loud(node, constants, measured, sizes)]


def _is_loud(
    node: onnx.NodeProto,
    constants: Mapping[str, float],
    measured: Mapping[str, float],
    sizes: Mapping[str, int],
) -> bool:
    tensors = [measured[name] for name in (*node.input, *node.output) if name in measured]
    factors = [constants[name] for name in node.input[:_ADDENDS] if name in constants]
    addends = [constants[name] for name in node.input[_ADDENDS:] if name in constants]
    return (
        max([*tensors, *factors, *addends, _sum_within(node, measured, sizes)]) > LARGEST
        or min((value for value in (*tensors, *factors) if value > 0), default=1.0) < SMALLEST
    )


def _sum_within(
    node: onnx.NodeProto, measured: Mapping[str, float], sizes: Mapping[str, int]
) -> float:
    """Return what a mean adds up to before it is divided."""
    if node.op_type not in ("ReduceMean", "GlobalAveragePool", "AveragePool"):
        return 0.0
    count = sizes.get(node.input[0], 1) / sizes.get(node.output[0], 1)
    for attribute in node.attribute:
        if attribute.name == "kernel_shape":
            count = math.prod(attribute.ints)
    return count * measured.get(node.output[0], 0.0)


def _sizes(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    """Yield how many values a tensor holds for one picture, where its shape is known."""
    for value in (*graph.input, *graph.value_info, *graph.output):
        sides = [axis.dim_value for axis in value.type.tensor_type.shape.dim[1:]]
        if all(sides):
            yield value.name, math.prod(sides)


def _largest(source: Path, images: NDArray[np.uint8], *, explained: bool) -> dict[str, float]:
    """Return the largest absolute value of each tensor of floats."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        calibrator: Any = create_calibrator(
            source,
            augmented_model_path=str(Path(folder) / "ranges.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(Reader(batches(images, explained=explained)))
    return {
        name: float(np.abs(tensor.range_value).max())
        for name, tensor in calibrator.compute_data().items()
    }
