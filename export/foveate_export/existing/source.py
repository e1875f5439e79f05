"""Reads an ONNX file and finds in it what a bundle needs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from foveate_export.anatomy.ending import End, Ending, find_ending, for_labels, probes
from foveate_export.anatomy.layer import Layer
from foveate_export.errors import ExportError, UnsupportedHeadError, UsageError
from foveate_export.existing.end import behind, find_normaliser, is_plain, operator
from foveate_export.existing.file import File, Layout, OneByOne
from foveate_export.existing.head import PooledHead, find_head, two_sided
from foveate_export.existing.reading import read
from foveate_export.existing.session import open_session
from foveate_export.existing.shapes import infer_shapes, make_batch_dynamic
from foveate_export.pictures import Pictures, noise
from foveate_runtime.bundle.manifest import InputSpec, Scores

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
_ROUNDING = ("QuantizeLinear", "QLinear", "QGemm")
"""How the names of operators begin whose results have 256 levels."""

_NO_LAYERS = frozenset({"Cast", "Identity", "Reshape", "Transpose"})
"""Operators that return their input map, with any order of its axes."""


@dataclass(frozen=True)
class Existing(File):
    """A file, and what was found in it.

    Attributes:
        logits: the value that the logits are made of, behind the output; [N, classes]
            up to axes of one cell.
        labels: the names of the classes that the file itself gives; empty where it does not.
        assumptions: what was assumed where neither the file nor the user says it.
        ending: how they are made of it, and scores of them.
        outputs: how many values the file gives a picture.
        parameters: the floating-point numbers that the file holds.
        values: the values of the graph with four axes, by the name of their layer.
        layers: those of them that are maps, in the order of the graph.
        left_out: why the others are none.
        head: the pooling and linear layer at the end, or None.
        note: why there is none, or "".
    """

    logits: ir.Value
    labels: tuple[str, ...]
    assumptions: dict[str, str]
    ending: Ending
    outputs: int
    parameters: int
    values: dict[str, ir.Value]
    layers: list[Layer]
    left_out: dict[str, str]
    head: PooledHead | None
    note: str

    @property
    def precision(self) -> str:
        """What its numbers are inside: `int8` or `fp16` where some are, or `fp32`."""
        # Where rounding decides between two levels, engines may take either.
        if any(node.op_type.startswith(_ROUNDING) for node in self.model.graph):
            return "int8"
        values = [self.logits, *self.values.values()]
        return "fp16" if any(v.dtype is ir.DataType.FLOAT16 for v in values) else "fp32"

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return 2 if self.ending.sides else self.outputs

    def labelled(self, labels: Sequence[str]) -> "tuple[Existing, tuple[str, ...]]":
        """Return the file with the classes of `labels`, and the label of each.

        Raises:
            UsageError: they are not as many as the file's outputs.
        """
        ending, labels = for_labels(self.ending, self.outputs, labels, str(self.path))
        head = two_sided(self.head) if self.head and ending.sides else self.head
        return replace(self, ending=ending, head=head), labels

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
    layout: Layout | None,
    bgr: bool,
    logits: str | None,
    scores: Scores | None,
    pictures: Pictures | None,
) -> Existing:
    """Read an ONNX file, and take each value with four axes for a map, [N, C, h, w].

    Args:
        path: the file, with its weights in it or beside it.
        spec: the size and the normalisation of its input.
        layout: the axes of its input; None for those that `spec` fits.
        bgr: whether it takes blue, green and red, in this order.
        logits: the name of the output to classify by; None for the only one.
        scores: what makes scores of the logits; None to find it.
        pictures: what its end is found on; None for noise.

    Raises:
        UsageError: the file does not exist, or has not what the arguments say.
        ExportError: it is no ONNX file, no classifier of one picture, one that
            ONNX Runtime does not take, or one whose scores cannot be determined.
    """
    found = read(path)
    model = found.model
    graph = model.graph
    image = _only_input(graph)
    assumptions = {"file": found.said} if found.said else {}
    given, layout = layout, _layout(image, spec, layout)
    if given is None:
        assumptions["layout"] = f"{layout}, as the input {image.name} {image.shape} fits"
    name = _output(graph, logits)
    if logits is None and len(graph.outputs) > 1:
        others = ", ".join(str(value.name) for value in graph.outputs)
        assumptions["logits"] = f"{name!r}, of the outputs {others}"
    open_session(found.runnable, path)
    place = [str(value.name) for value in graph.outputs].index(name)
    batch = make_batch_dynamic(graph, image)
    infer_shapes(model, image, spec, layout)
    file = File(path, found.runnable, model, spec, layout, bgr, batch, str(image.name), name)
    value, ending = _find_ending(file, graph.outputs[place], scores, pictures or noise(spec))
    maps = _maps(graph)
    head, note = None, ""
    try:
        head = find_head(value)
    except UnsupportedHeadError as error:
        note = f"no class activation maps: {error}"
    return Existing(
        **vars(file),
        logits=value,
        labels=found.labels,
        assumptions=assumptions,
        ending=ending,
        outputs=_count(value) or 0,
        parameters=_parameters(graph),
        values={layer.path: value for layer, value in maps},
        layers=[layer for layer, _ in maps],
        left_out={},
        head=head,
        note=note,
    )


def _only_input(graph: ir.Graph) -> ir.Value:
    if len(graph.inputs) != 1:
        names = ", ".join(str(value.name) for value in graph.inputs)
        raise ExportError(f"the graph has the inputs {names}; one, the picture, is expected")
    (image,) = graph.inputs
    if image.dtype is not ir.DataType.FLOAT:
        raise ExportError(
            f"the input {image.name} is {image.dtype}; float32 is expected: put a Cast from it in "
            "front (onnx.compose), or export the file again with an input of floating-point numbers"
        )
    if image.shape is None or len(image.shape) != 4:
        raise ExportError(
            f"the input {image.name} is {image.shape}; pictures have four axes: where these are "
            "their pixels, put a Reshape before them and export again"
        )
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


def _output(graph: ir.Graph, name: str | None) -> str:
    outputs = [str(value.name) for value in graph.outputs]
    scores = [value for value in graph.outputs if value.dtype in _FLOATS and value.shape]
    for fitting in (graph.outputs, scores):
        if name is None and len(fitting) == 1:
            name = str(fitting[0].name)
    if name is None or name not in outputs:
        what = "--logits chooses one" if name is None else f"{name} is none of them"
        raise UsageError(f"the graph has the outputs {', '.join(outputs)}; {what}")
    return name


def _find_ending(
    file: File, output: ir.Value, wanted: Scores | None, pictures: Pictures
) -> tuple[ir.Value, Ending]:
    """Return the value that the logits are made of, and how."""
    value = _vector(output)
    if value is None:
        raise ExportError(f"the output {file.output} is {output.shape}; [N, classes] is expected")
    if output.dtype not in _FLOATS:
        best = operator(output) == "ArgMax"
        raise ExportError(
            f"the output {file.output} is {output.dtype}"
            + (", the index of the best class (ArgMax)" if best else "")
            + "; floating-point numbers are expected, the logits or scores of all classes"
        )
    if operator(output).startswith("TopK"):
        raise ExportError(
            f"the output {file.output} is sorted (TopK), so that its places are no classes: export "
            "the file without its TopK, or name another output with --logits"
        )
    found = find_normaliser(output)
    taken = _vector(found[1]) if found else None
    images = probes(pictures, file.spec)
    (outputs,) = OneByOne(file).run(images)
    outputs = outputs.reshape(len(images), -1)
    end = End(operator(output), is_plain(output))
    if found and taken is not None and _count(taken) == outputs.shape[1]:
        (before,) = OneByOne(file, [taken]).run(images)
        precision = "fp16" if taken.dtype is ir.DataType.FLOAT16 else "fp32"
        end = replace(
            end, normaliser=found[0], before=before.reshape(outputs.shape), precision=precision
        )
    ending = find_ending(outputs, end, wanted)
    return taken if ending.normaliser and taken is not None else value, ending


def _vector(output: ir.Value) -> ir.Value | None:
    """Return the first value of the same numbers with one axis of classes, known in size."""
    return next((value for value in behind(output) if _count(value)), None)


def _count(value: ir.Value) -> int | None:
    """Return how many numbers a picture has, where they all lie on one axis."""
    if value.shape is None or not value.shape.dims:
        return None
    if len(value.shape) == 1 and isinstance(value.shape[0], int):
        # The pictures' axis was squeezed, and what is left may be the classes'.
        return None
    sizes = [size for size in value.shape.dims[1:] if size != 1] or [1]
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], int) else None


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
        if value.dtype not in _FLOATS or value.shape is None:
            continue
        if not len(value.shape) or isinstance(value.shape[0], int):
            # Weights that are computed, as those of quantised layers, are no maps.
            continue
        sizes = [size for size in value.shape.dims[1:] if isinstance(size, int)]
        if len(value.shape) != 4 or len(sizes) != 3 or sizes[1] * sizes[2] == 1:
            continue
        name = node.name or str(value.name)
        channels, height, width = sizes
        maps.setdefault(name, (Layer(name, node.op_type, channels, height, width), value))
    return list(maps.values())
