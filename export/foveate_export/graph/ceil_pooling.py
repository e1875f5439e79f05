"""Writes poolings that round their size up with explicit padding.

With `ceil_mode` PyTorch drops a last window that would begin in the padding, which
ONNX's formula for the size does not. Once the padding at the end is that which
the windows of PyTorch reach, both round down to the same size.
"""

import onnx_ir as ir


class ExplicitCeilPooling(ir.passes.InPlacePass):
    """Takes `ceil_mode` off every pooling whose sizes are known, and pads it at the end."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Change the poolings of `model`."""
        changed = False
        for node in list(model.graph):
            if node.op_type in ("MaxPool", "AveragePool") and _integer(node, "ceil_mode"):
                _rewrite(model.graph, node)
                changed = True
        return ir.passes.PassResult(model, changed)


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    (given, *_), (returned, *_) = node.inputs, node.outputs
    sizes = [
        [size for size in value.shape[2:] if isinstance(size, int)] if value and value.shape else []
        for value in (given, returned)
    ]
    kernel = list(node.attributes["kernel_shape"].as_ints())
    axes = len(kernel)
    if given is None or [len(each) for each in sizes] != [axes, axes]:
        return
    strides, dilations = (_integers(node, name, [1] * axes) for name in ("strides", "dilations"))
    pads = _integers(node, "pads", [0] * 2 * axes)
    before, after = pads[:axes], pads[axes:]
    reach = [
        (sizes[1][i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 for i in range(axes)
    ]
    if node.op_type == "AveragePool" and _integer(node, "count_include_pad"):
        # Zeros within the padding count, and what lies behind it does not.
        widths = [0, 0, *before, 0, 0, *after]
        constant = ir.Value(name=f"{returned.name}_pads", const_value=ir.tensor(widths))
        graph.register_initializer(constant)
        padded = ir.node("Pad", [given, constant])
        padded.outputs[0].name = f"{returned.name}_padded"
        graph.insert_before(node, padded)
        node.replace_input_with(0, padded.outputs[0])
        sizes[0] = [size + before[i] + after[i] for i, size in enumerate(sizes[0])]
        before = [0] * axes
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)
    ends = [max(reach[i] - before[i] - sizes[0][i], 0) for i in range(axes)]
    node.attributes["pads"] = ir.AttrInt64s("pads", [*before, *ends])
    node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)


def _integer(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute else 0


def _integers(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return list(attribute.as_ints()) if attribute else default
