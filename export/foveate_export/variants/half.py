"""Float16: half the bytes and, on a GPU, about twice the speed; what explains stays float32."""

from pathlib import Path

import onnx
import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from foveate_export.variants.quantise import nodes_behind
from foveate_export.variants.rows import gather_first
from foveate_runtime.bundle.manifest import CAM_PREFIX, LOGITS_OUTPUT

_FLOAT_OPERATORS = ("LRN",)
"""Its squares of activations leave float16's range, which ends at 65504."""


def halve(source: Path, target: Path) -> None:
    """Write the float16 variant of the float graph `source` to `target`.

    Inputs and outputs keep their types. The normalisation of the pixels, and the
    nodes that only the class activation maps need, compute in float32. What
    does so on a weight of the trunk casts it up, of single rows these alone.
    """
    model = onnx.load(source)
    converted = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FLOAT_OPERATORS],
        node_block_list=_float_nodes(model.graph),
    )
    # The converter leaves the types of some tensors as they were, appends its casts
    # behind the nodes that use them, and repeats a cast for every such node.
    del converted.graph.value_info[:]
    nodes = {node.output[0]: node for node in converted.graph.node}
    del converted.graph.node[:]
    converted.graph.node.extend(nodes.values())
    gather_first(converted.graph)
    ordered = onnx_ir.from_proto(converted)
    RemoveUnusedNodesPass()(ordered)
    TopologicalSortPass()(ordered)
    onnx_ir.save(ordered, target)
    onnx.checker.check_model(target, full_check=True)


def _float_nodes(graph: onnx.GraphProto) -> list[str]:
    """Return the nodes that only maps need, and those before the first weighted layer."""
    makers = {name: node for node in graph.node for name in node.output}
    outputs = [output.name for output in graph.output]
    others = [name for name in outputs if not name.startswith(CAM_PREFIX)]
    for_maps = nodes_behind(makers, outputs) - nodes_behind(makers, others)
    first = next((node for node in graph.node if node.op_type in ("Conv", "Gemm")), None)
    before = nodes_behind(makers, first.input) if first else set()
    return sorted(for_maps | before & nodes_behind(makers, [LOGITS_OUTPUT]))
