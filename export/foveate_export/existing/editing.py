"""Writes the graph of an ONNX file again so that it keeps the graph contract."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import tape
from onnx_ir.passes import common

from foveate_export.anatomy.ending import SIDES, TINY
from foveate_export.anatomy.layer import Layer
from foveate_export.anatomy.layout import NHWC, Layout
from foveate_export.anatomy.pooled import by_gradient
from foveate_export.existing.head import Linear, PooledHead
from foveate_export.existing.source import Existing
from foveate_runtime.bundle.manifest import (
    CAM_PREFIX,
    CLASS_IDS_INPUT,
    FEATURES_PREFIX,
    IMAGE_INPUT,
    LOGITS_OUTPUT,
    MOST_RANKS,
)


def write_graph(source: Existing, layers: Sequence[Layer], path: Path) -> None:
    """Write `source` to `path` with the inputs and outputs of a bundle.

    The model of `source` is changed: a source is written once.

    Raises:
        onnx.checker.ValidationError: the edited graph is not valid.
    """
    model, head = source.model, source.head
    graph = model.graph
    _free_names(graph)
    image = ir.val(IMAGE_INPUT, ir.DataType.UINT8, _image_shape(source))
    (original,) = graph.inputs
    before, after = _Nodes(graph), _Nodes(graph)
    pixels = before.normalised(image, source)
    original.replace_all_uses_with(pixels)
    for node in reversed(before.tape.nodes):
        graph.insert_before(next(iter(graph)), node)
    inputs, outputs = [image], {LOGITS_OUTPUT: after.logits(source)}
    if head is not None:
        class_ids = ir.val(CLASS_IDS_INPUT, ir.DataType.INT64, ["N", "K"])
        inputs.append(class_ids)
        classes = after.resolved(outputs[LOGITS_OUTPUT], class_ids, source.classes)
        maps = after.maps(head, classes)
        outputs |= {CAM_PREFIX + method: maps[method] for method in head.methods}
    outputs |= {
        FEATURES_PREFIX + layer.path: after.channels_first(source.values[layer.path], layer.layout)
        for layer in layers
    }
    named = [after.output(name, value) for name, value in outputs.items()]
    graph.extend(after.tape.nodes)
    graph.inputs[:] = inputs
    graph.outputs[:] = named
    for tidy in (
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
        common.ClearMetadataAndDocStringPass(),
        common.ShapeInferencePass(check_type=False, strict_mode=False),
    ):
        tidy(model)
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)


def _image_shape(source: Existing) -> list[str | int]:
    return ["N", source.spec.height, source.spec.width, source.spec.channels]


def _free_names(graph: ir.Graph) -> None:
    """Give new names to values of the file that are called as the contract's."""
    values = [*graph.inputs, *graph.initializers.values()]
    values += [value for node in graph for value in node.outputs]
    for value in values:
        name = str(value.name)
        if name in {IMAGE_INPUT, CLASS_IDS_INPUT, LOGITS_OUTPUT} or name.startswith(
            (CAM_PREFIX, FEATURES_PREFIX)
        ):
            value.name = f"original.{name}"


class _Nodes:
    """Nodes that are added to a graph, in their order."""

    def __init__(self, graph: ir.Graph) -> None:
        self.tape = tape.Tape()
        self._graph = graph
        self._outputs: set[ir.Value] = set()

    def normalised(self, image: ir.Value, source: Existing) -> ir.Value:
        """Turn uint8 [N, H, W, C] into what the file takes."""
        spec = source.spec
        mean, std = np.asarray(spec.mean), np.asarray(spec.std)
        # Along whole rows, because engines are slow with factors of 3 values.
        rows = self._op("Reshape", self._op("Cast", image, to=ir.DataType.FLOAT),
                        self._shape(0, spec.height, spec.width * spec.channels))  # fmt: skip
        scaled = self._op("Mul", rows, self._floats(np.tile(1 / (255 * std), spec.width)))
        shifted = self._op("Add", scaled, self._floats(np.tile(-mean / std, spec.width)))
        pixels = self._op(
            "Reshape", shifted, self._shape(0, spec.height, spec.width, spec.channels)
        )
        if source.bgr:
            backwards = self._shape(*reversed(range(spec.channels)))
            pixels = self._op("Gather", pixels, backwards, axis=3)
        return (
            pixels if source.layout == "nhwc" else self._op("Transpose", pixels, perm=[0, 3, 1, 2])
        )

    def logits(self, source: Existing) -> ir.Value:
        """Return the logits as float32 [N, classes]."""
        value, ending = self._float(source.logits), source.ending
        if value.shape is None or len(value.shape) != 2:
            value = self._op("Flatten", value, axis=1)
        logits = value if ending.form == "as is" else self._logarithm(value)
        if ending.form == "log-odds":
            others = self._op("Sub", self._floats([1.0]), value)
            logits = self._op("Sub", logits, self._logarithm(others))
        return self._op("Mul", logits, self._floats(SIDES)) if ending.sides else logits

    def resolved(self, logits: ir.Value, class_ids: ir.Value, classes: int) -> ir.Value:
        """Replace negative class ids, -1 for the best class, by the class of that rank."""
        _, ranked = self.tape.op_multi_out(
            "TopK", [logits, self._shape(min(classes, MOST_RANKS))], {"axis": 1}, num_outputs=2
        )
        minus_one, zero = self._shape(-1), self._shape(0)
        ranks = self._op("Max", self._op("Sub", minus_one, class_ids), zero)
        by_rank = self._op("GatherElements", ranked, ranks, axis=1)
        return self._op("Where", self._op("Less", class_ids, zero), by_rank, class_ids)

    def maps(self, head: PooledHead, classes: ir.Value) -> dict[str, ir.Value]:
        """Compute the maps of the classes, [N, K, h, w], by method."""
        flat = self._flat(head)
        if head.linear is None:
            # For each class its own channel.
            count = self._shape(1, 1, head.height * head.width)
            index = self._op("Expand", self._op("Unsqueeze", classes, self._shape(2)), count)
            return {"cam": self._square(self._op("GatherElements", flat, index, axis=1), head)}
        rows = self._rows(head.linear, classes)
        cells = self._floats([head.height * head.width])

        def weigh(rows: ir.Value) -> ir.Value:
            return self._square(self._op("MatMul", rows, flat), head)

        def relu(value: ir.Value) -> ir.Value:
            return self._op("Relu", value)

        def per_cell(maps: ir.Value) -> ir.Value:
            return self._op("Div", maps, cells)

        cam = weigh(rows)
        return {"cam": cam, **by_gradient(rows, cam, weigh, relu, per_cell)}

    def channels_first(self, value: ir.Value, layout: Layout) -> ir.Value:
        """Return a map as [N, C, h, w]."""
        return self._op("Transpose", value, perm=[0, 3, 1, 2]) if layout == NHWC else value

    def output(self, name: str, value: ir.Value) -> ir.Value:
        """Give a value the name of an output."""
        named = value
        if value.dtype not in (None, ir.DataType.FLOAT):
            named = self._float(value)
        elif value.producer() is None or value in self._outputs:
            # A value has one name. Where it may, it gets that of the output: of an Identity before
            # a Pad, ONNX Runtime 1.31 makes a graph that it cannot load (Pad_Fusion).
            named = self._op("Identity", value)
        self._outputs.add(named)
        named.name = name
        named.dtype = ir.DataType.FLOAT
        return named

    def _rows(self, linear: Linear, classes: ir.Value) -> ir.Value:
        """Return the weights of the classes, [N, K, C], from those of the linear layer."""
        if linear.value is None:
            rows = self._op("Gather", self._floats(linear.weight), classes, axis=0)
        elif linear.classes_last:
            columns = self._op("Gather", linear.value, classes, axis=1)
            rows = self._op("Transpose", columns, perm=[1, 2, 0])
        else:
            weight = self._op("Reshape", linear.value, self._shape(0, -1))
            rows = self._op("Gather", weight, classes, axis=0)
        if linear.value is not None and linear.value.dtype is not ir.DataType.FLOAT:
            rows = self._op("Cast", rows, to=ir.DataType.FLOAT)
        return rows if linear.alpha == 1 else self._op("Mul", rows, self._floats([linear.alpha]))

    def _flat(self, head: PooledHead) -> ir.Value:
        """Return the activations as float32 [N, C, h * w]."""
        maps = self._float(head.activations)
        if head.channels_last:
            cells = self._op("Reshape", maps, self._shape(0, head.height * head.width, -1))
            return self._op("Transpose", cells, perm=[0, 2, 1])
        return self._op("Reshape", maps, self._shape(0, 0, -1))

    def _float(self, value: ir.Value) -> ir.Value:
        """Return a value as float32."""
        if value.dtype in (None, ir.DataType.FLOAT):
            return value
        return self._op("Cast", value, to=ir.DataType.FLOAT)

    def _logarithm(self, shares: ir.Value) -> ir.Value:
        return self._op("Log", self._op("Max", shares, self._floats([TINY])))

    def _square(self, maps: ir.Value, head: PooledHead) -> ir.Value:
        return self._op("Reshape", maps, self._shape(0, 0, head.height, head.width))

    def _op(self, operator: str, *inputs: ir.Value, **attributes: int | Sequence[int]) -> ir.Value:
        return self.tape.op(operator, inputs, attributes)

    def _floats(self, values: Sequence[float] | NDArray[np.floating]) -> ir.Value:
        return self._constant(np.asarray(values, dtype=np.float32))

    def _shape(self, *sizes: int) -> ir.Value:
        return self._constant(np.asarray(sizes, dtype=np.int64))

    def _constant(self, array: NDArray[np.float32] | NDArray[np.int64]) -> ir.Value:
        name = f"foveate.{len(self._graph.initializers)}"
        value = ir.Value(name=name, const_value=ir.tensor(array))
        self._graph.register_initializer(value)
        return value
