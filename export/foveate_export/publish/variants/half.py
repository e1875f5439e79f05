"""Float16: half the bytes and, on a GPU, about twice the speed; what explains stays float32."""

from collections.abc import Collection
from pathlib import Path

import onnx
import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from foveate_export.errors import ExportError
from foveate_export.publish.variants.quantise import nodes_behind
from foveate_export.publish.variants.rows import gather_first
from foveate_runtime.bundle.manifest import CAM_PREFIX, LOGITS_OUTPUT

_FLOAT_OPERATORS = (
    *("GroupNormalization", "InstanceNormalization", "LRN", "LpNormalization"),
    *("MeanVarianceNormalization", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"),
)
"""Their sums of squares or powers of activations leave float16's range, which ends at 65504.
LayerNormalization's do not: its definition has them in float32."""

_HALVED = "_cast_to_fp16_node"
"""How the converter names what halves the result of a node in float32."""

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def halve(source: Path, target: Path, loud: Collection[str] = ()) -> None:
    """Write the float16 variant of the float graph `source` to `target`.

    Inputs and outputs keep their types. The normalisation of the pixels, the nodes
    that only the class activation maps need, and those named by `loud` compute in
    float32. What does so on a weight of the trunk casts it up, of single rows these
    alone.

    Raises:
        ExportError: no convolution or linear layer is left to compute in halves.
    """
    model = onnx.load(source)
    kept = {*_float_nodes(model.graph), *loud}
    products = {node.name for node in model.graph.node if node.op_type in _WEIGHTED}
    if products and products <= kept:
        raise ExportError(
            "fp16: every convolution and linear layer takes or gives values beyond the range "
            "of 16 bits, so that nothing is left to halve; export without fp16"
        )
    # The converter would take a weight for half that only nodes in float32 read.
    weights = {tensor.name for tensor in model.graph.initializer}
    others = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(others)
    converted = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FLOAT_OPERATORS],
        node_block_list=sorted(kept),
    )
    # The converter leaves the types of some tensors as they were, appends its casts
    # behind the nodes that use them, and repeats a cast for every such node.
    del converted.graph.value_info[:]
    nodes = {node.output[0]: node for node in converted.graph.node}
    del converted.graph.node[:]
    converted.graph.node.extend(nodes.values())
    _leave_float(converted.graph)
    gather_first(converted.graph)
    ordered = onnx_ir.from_proto(converted)
    RemoveUnusedNodesPass()(ordered)
    TopologicalSortPass()(ordered)
    onnx_ir.save(ordered, target)
    onnx.checker.check_model(target, full_check=True)


def _leave_float(graph: onnx.GraphProto) -> None:
    """Let what passes between two nodes in float32 stay so, where the converter halves it."""
    halved = {node.output[0]: node.input[0] for node in graph.node if node.name.endswith(_HALVED)}
    for node in graph.node:
        to_float = any(a.name == "to" and a.i == onnx.TensorProto.FLOAT for a in node.attribute)
        if node.op_type == "Cast" and to_float and node.input[0] in halved:
            node.input[0] = halved[node.input[0]]
            node.op_type = "Identity"
            del node.attribute[:]


def _float_nodes(graph: onnx.GraphProto) -> set[str]:
    """Return the nodes that only maps need, and those before the first weighted layer."""
    makers = {name: node for node in graph.node for name in node.output}
    outputs = [output.name for output in graph.output]
    others = [name for name in outputs if not name.startswith(CAM_PREFIX)]
    for_maps = nodes_behind(makers, outputs) - nodes_behind(makers, others)
    first = next((node for node in graph.node if node.op_type in ("Conv", "Gemm")), None)
    before = nodes_behind(makers, first.input) if first else set()
    return for_maps | before & nodes_behind(makers, [LOGITS_OUTPUT])
