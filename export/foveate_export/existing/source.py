"""Reads an ONNX file and finds in it what a bundle needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants

from foveate_export.errors import ExportError, UnsupportedHeadError, UsageError
from foveate_export.existing.head import PooledHead, constant, find_head
from foveate_export.existing.session import first_line, open_session
from foveate_export.layer import Layer
from foveate_serve.bundle.manifest import InputSpec

Layout = Literal["nchw", "nhwc"]

MIN_OPSET = 13
"""What the nodes that are added are written for; older files are converted to it."""

_NORMALISING = ("Softmax", "LogSoftmax")
_NO_LAYERS = frozenset({"Cast", "Identity", "Reshape", "Transpose"})
"""Operators that hand a map on, whatever the order of its axes."""


@dataclass(frozen=True)
class Existing:
    """A classifier in an ONNX file, ready to be edited: its batch is dynamic already.

    Attributes:
        path: the file.
        model: what it holds, with the shapes that follow from the input's.
        spec: how a picture becomes the input.
        layout: the axes of the input.
        bgr: whether its colours stand in this order.
        batch: how many pictures the file itself takes at once; None for any number.
        input: the name of its input.
        output: the name of its output.
        logits: the value behind the output, before a softmax; [N, classes] up to
            axes of one cell.
        softmax: the operator that makes the output of the logits, or "".
        parameters: the floating-point numbers that the file holds.
        classes: how many.
        values: the values of the graph with four axes, by the name of their layer.
        layers: those of them that are maps, in the order of the graph.
        left_out: why the others are none.
        head: the pooling and linear layer at the end, or None.
        note: why there is none, or "".
    """

    path: Path
    model: ir.Model
    spec: InputSpec
    layout: Layout
    bgr: bool
    batch: int | None
    input: str
    output: str
    logits: ir.Value
    softmax: str
    parameters: int
    classes: int
    values: dict[str, ir.Value]
    layers: list[Layer]
    left_out: dict[str, str]
    head: PooledHead | None
    note: str

    @property
    def cam_layer(self) -> str:
        """The name of the layer whose activations the maps weigh."""
        value = self.head.activations if self.head else None
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "Transpose":
            # The same map, with its channels last.
            value = producer.inputs[0]
        names = [layer for layer, found in self.values.items() if found is value]
        return names[0] if names else str(value.name if value is not None else "")

    @property
    def default_layers(self) -> list[Layer]:
        """The last layer of each size of map."""
        ends = {(layer.height, layer.width): layer for layer in self.layers}
        return [layer for layer in self.layers if layer in ends.values()]


def read_existing(
    path: Path,
    spec: InputSpec,
    *,
    layout: Layout | None = None,
    bgr: bool = False,
    logits: str | None = None,
) -> Existing:
    """Read an ONNX file, and take each value with four axes for a map, [N, C, h, w].

    Args:
        path: the file, with its weights in it or beside it.
        spec: the size and the normalisation of its input.
        layout: the axes of its input; None for those that `spec` fits.
        bgr: whether it takes blue, green and red, in this order.
        logits: the name of the output to classify by; None for the only one.

    Raises:
        UsageError: the file does not exist, or has not what the arguments say.
        ExportError: it is no ONNX file, no classifier of one picture, or one that
            ONNX Runtime does not take.
    """
    model = read_model(path)
    graph = model.graph
    image = _only_input(graph)
    layout = _layout(image, spec, layout)
    output = _output(graph, logits)
    open_session(str(path), path)
    batch = _make_batch_dynamic(graph, image)
    _infer_shapes(model, image, spec, layout)
    value, softmax = _before_softmax(output)
    maps = _maps(graph)
    head, note = None, ""
    try:
        head = find_head(value)
    except UnsupportedHeadError as error:
        note = f"no class activation maps: {error}"
    return Existing(
        path=path,
        model=model,
        spec=spec,
        layout=layout,
        bgr=bgr,
        batch=batch,
        input=str(image.name),
        output=str(output.name),
        logits=value,
        softmax=softmax,
        parameters=_parameters(graph),
        classes=_classes(value),
        values={layer.path: value for layer, value in maps},
        layers=[layer for layer, _ in maps],
        left_out={},
        head=head,
        note=note,
    )


def read_model(path: Path) -> ir.Model:
    """Read an ONNX file, of `MIN_OPSET` or later after this, without functions of its own.

    Raises:
        UsageError: it does not exist.
        ExportError: it is no ONNX file, or too old to convert.
    """
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except DecodeError as error:
        raise ExportError(f"{path} is no ONNX file") from error
    except (onnx.checker.ValidationError, onnx.onnx_cpp2py_export.checker.ValidationError) as error:
        raise ExportError(f"{path}: {first_line(error)}") from error
    opset = next((each.version for each in proto.opset_import if not each.domain), 0)
    if opset < MIN_OPSET:
        try:
            proto = onnx.version_converter.convert_version(proto, MIN_OPSET)
        except (RuntimeError, onnx.version_converter.ConvertError) as error:
            raise ExportError(
                f"{path} is of opset {opset}, and cannot be converted to {MIN_OPSET}: "
                f"{first_line(error)}"
            ) from error
    model = ir.from_proto(proto)
    for tidy in (
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.RemoveInitializersFromInputsPass(),
    ):
        tidy(model)
    return model


def _only_input(graph: ir.Graph) -> ir.Value:
    if len(graph.inputs) != 1:
        names = ", ".join(str(value.name) for value in graph.inputs)
        raise ExportError(f"the graph has the inputs {names}; one, the picture, is expected")
    (image,) = graph.inputs
    if image.dtype is not ir.DataType.FLOAT:
        raise ExportError(
            f"the input {image.name} is {image.dtype}; float32 is expected, normalised pixels"
        )
    if image.shape is None or len(image.shape) != 4:
        raise ExportError(f"the input {image.name} is {image.shape}; four axes are expected")
    return image


def _layout(image: ir.Value, spec: InputSpec, wanted: Layout | None) -> Layout:
    """Return the layout in which the input can have the size of `spec`."""
    sizes: dict[Layout, tuple[int, ...]] = {
        "nchw": (spec.channels, spec.height, spec.width),
        "nhwc": (spec.height, spec.width, spec.channels),
    }
    axes = image.shape.dims[1:] if image.shape is not None else ()
    for layout in sizes if wanted is None else (wanted,):
        pairs = zip(axes, sizes[layout], strict=True)
        if all(axis == size for axis, size in pairs if isinstance(axis, int)):
            return layout
    size = " x ".join(map(str, sizes[wanted or "nchw"]))
    raise UsageError(f"the input {image.name} is {image.shape}, and the specification says {size}")


def _output(graph: ir.Graph, name: str | None) -> ir.Value:
    outputs = {str(value.name): value for value in graph.outputs}
    if name is None and len(outputs) == 1:
        (name,) = outputs
    if name not in outputs:
        what = "--logits chooses one" if name is None else f"{name} is none of them"
        raise UsageError(f"the graph has the outputs {', '.join(outputs)}; {what}")
    return outputs[name]


def _make_batch_dynamic(graph: ir.Graph, image: ir.Value) -> int | None:
    """Take the number of pictures out of the graph; return what it was, None for any number.

    Shapes that were written down for that number keep their first axis instead.
    Whether that was all is seen when the graph runs with another number.
    """
    batch = image.shape[0] if image.shape is not None else None
    if not isinstance(batch, int):
        return None
    for node in graph:
        shape = constant(node.inputs[1]) if node.op_type == "Reshape" else None
        if shape is None or shape.ndim != 1 or not len(shape) or shape[0] != batch:
            continue
        if 0 in shape[1:] and "allowzero" in node.attributes:
            continue
        # The axis is kept by a 0, which this attribute would take for its size.
        node.attributes.pop("allowzero", None)
        kept = ir.tensor([0, *(int(size) for size in shape[1:])], ir.DataType.INT64)
        value = ir.Value(name=f"{node.name or node.outputs[0].name}.any_batch", const_value=kept)
        graph.register_initializer(value)
        node.replace_input_with(1, value)
    return batch


def _infer_shapes(model: ir.Model, image: ir.Value, spec: InputSpec, layout: Layout) -> None:
    """Forget the shapes that the file notes, and infer those that follow from `spec`."""
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


def _before_softmax(output: ir.Value) -> tuple[ir.Value, str]:
    """Return the logits: what a softmax at the end takes, since the server applies its own."""
    node = output.producer()
    if node is None or node.op_type not in _NORMALISING or node.inputs[0] is None:
        return output, ""
    return node.inputs[0], node.op_type


def _classes(logits: ir.Value) -> int:
    dims: Sequence[object] = logits.shape.dims if logits.shape is not None else ()
    classes = dims[1] if len(dims) >= 2 else None
    if not isinstance(classes, int) or any(size != 1 for size in dims[2:]):
        raise ExportError(f"the output {logits.name} is {logits.shape}; [N, classes] is expected")
    return classes


def _parameters(graph: ir.Graph) -> int:
    tensors = (value.const_value for value in graph.initializers.values())
    return sum(t.size for t in tensors if t is not None and t.dtype.is_floating_point())


def _maps(graph: ir.Graph) -> list[tuple[Layer, ir.Value]]:
    """Return the nodes that return a map of more than one cell, by their names.

    A node without a name goes by that of its output.
    """
    maps: dict[str, tuple[Layer, ir.Value]] = {}
    for node in graph:
        value = node.outputs[0]
        if node.op_type in _NO_LAYERS or len(node.outputs) != 1:
            continue
        if value.dtype is not ir.DataType.FLOAT or value.shape is None:
            continue
        sizes = [size for size in value.shape.dims[1:] if isinstance(size, int)]
        if len(value.shape) != 4 or len(sizes) != 3 or sizes[1] * sizes[2] == 1:
            continue
        name = node.name or str(value.name)
        channels, height, width = sizes
        maps.setdefault(name, (Layer(name, node.op_type, channels, height, width), value))
    return list(maps.values())
