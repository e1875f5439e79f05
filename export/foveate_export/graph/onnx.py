"""Turns the explained classifier into one ONNX file."""

from pathlib import Path

import onnx
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    DeduplicateInitializersPass,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from foveate_export.errors import ExportError
from foveate_export.graph.ceil_pooling import ExplicitCeilPooling
from foveate_export.graph.classifier import ExplainedClassifier
from foveate_runtime.bundle.manifest import InputSpec

OPSET = 20

LARGEST_FOLDED = 512 * 512
"""The values of the largest constant that the exporter's optimiser makes of others."""


def write_onnx(graph: ExplainedClassifier, spec: InputSpec, path: Path) -> None:
    """Write `graph` to `path`, with a dynamic batch and number of classes.

    The file holds its weights, each once: the exporter may fold a copy of one
    into a constant. It carries no stack traces or names of source
    files, which the exporter notes at every node by default.

    Raises:
        ExportError: the network cannot be traced, or an operator of it has no
            ONNX counterpart; names what it was.
    """
    # A batch of one would be taken for a constant.
    image = torch.zeros(2, spec.height, spec.width, spec.channels, dtype=torch.uint8)
    class_ids = torch.tensor([[-1, -2, 0], [-2, 0, -1]])
    inputs = {"image": image, "class_ids": class_ids}
    # The exporter sees by itself that both first axes are N, and warns of a
    # name given twice.
    dynamic = {"image": {0: "N"}, "class_ids": {0: torch.export.Dim.DYNAMIC, 1: "K"}}
    names = graph.input_names
    try:
        # Its other kernels leave their result in memory in an order that a view is traced for,
        # and that what the exporter writes in their place does not have.
        with sdpa_kernel(SDPBackend.MATH):
            program = torch.onnx.export(
                graph,
                tuple(inputs[name] for name in names),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                dynamic_shapes={name: dynamic[name] for name in names},
                input_names=names,
                output_names=graph.output_names,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"the network cannot be written as ONNX: {_cause(error)}") from error
    if program is None:
        raise ExportError("the network cannot be written as ONNX: the exporter returned nothing")
    ExplicitCeilPooling()(program.model)
    ClearMetadataAndDocStringPass()(program.model)
    DeduplicateInitializersPass(size_limit=LARGEST_FOLDED)(program.model)
    program.save(path, external_data=False)
    onnx.checker.check_model(path, full_check=True)


def _cause(error: BaseException) -> str:
    """Return what went wrong first: the exporter wraps it in advice to PyTorch's developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0]
