"""Finds out which nodes of an ONNX file return maps, by painting corners of pictures.

It needs no torch; `foveate_export.anatomy.location` says how it works.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from foveate_export.anatomy.layer import Layer
from foveate_export.anatomy.layout import NHWC, Layout, candidates
from foveate_export.anatomy.location import NOT_LOCATED, locate, painted
from foveate_export.existing import file, source
from foveate_export.existing.file import Array, OneByOne
from foveate_export.existing.head import constant
from foveate_export.existing.source import Existing
from foveate_export.pictures import Pictures
from foveate_runtime.bundle.manifest import InputSpec, Scores

_PICTURES = 2

_WINDOWS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
"""Operators that go over the axes 2 and 3 as rows and columns, beside convolutions."""


def open_existing(
    path: Path,
    spec: InputSpec,
    *,
    layout: file.Layout | None = None,
    bgr: bool = False,
    logits: str | None = None,
    scores: Scores | None = None,
    pictures: Pictures | None = None,
) -> Existing:
    """Read an ONNX file and find the nodes that return maps, each in its layout.

    Takes the arguments of `foveate_export.existing.source.read_existing`, and
    raises what it raises.
    """
    existing = source.read_existing(
        path, spec, layout=layout, bgr=bgr, logits=logits, scores=scores, pictures=pictures
    )
    values = {layer.path: existing.values[layer.path] for layer in existing.layers}
    if not values:
        return existing
    runner = OneByOne(existing, list(values.values()))

    def run(noise: NDArray[np.float32]) -> dict[str, Array]:
        found = runner.run_pixels(
            noise if existing.layout == "nchw" else noise.transpose(0, 2, 3, 1)
        )
        by_value = dict(zip(dict.fromkeys(values.values()), found, strict=True))
        return {layer: by_value[value] for layer, value in values.items()}

    size = (spec.height, spec.width)
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((_PICTURES, spec.channels, *size)).astype(np.float32)
    before = run(noise)
    choices = {layer: candidates(values.shape, size) for layer, values in before.items()}
    choices = {layer: choice for layer, choice in choices.items() if choice}
    found = locate(before, map(run, painted(noise)), choices, _convolved(existing))
    return replace(
        existing,
        layers=[_read(each, found[each.path]) for each in existing.layers if each.path in found],
        left_out={each: NOT_LOCATED for each in values if each not in found},
    )


def _read(layer: Layer, layout: Layout) -> Layer:
    """Return a layer, whose sizes were taken for [C, h, w], in its own layout."""
    if layout != NHWC:
        return layer
    height, width, channels = layer.channels, layer.height, layer.width
    return replace(layer, channels=channels, height=height, width=width, layout=layout)


def _convolved(existing: Existing) -> set[str]:
    """Return the layers that convolutions of more than one cell and poolings take or return.

    None where a product of two activations may take anything anywhere.
    """
    names = {id(value): layer for layer, value in existing.values.items()}
    found = set()
    for node in existing.model.graph:
        if node.op_type in {"MatMul", "Einsum"} and all(constant(v) is None for v in node.inputs):
            return set()
        if node.op_type in _WINDOWS or (node.op_type == "Conv" and _has_windows(node)):
            found |= {names.get(id(value), "") for value in (node.inputs[0], node.outputs[0])}
    return found - {""}


def _has_windows(convolution: ir.Node) -> bool:
    weight = convolution.inputs[1]
    shape = weight.shape if weight is not None else None
    return shape is not None and any(size != 1 for size in shape.dims[2:])
