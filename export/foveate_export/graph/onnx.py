"""Turns the explained classifier into one ONNX file."""

from pathlib import Path
from typing import Any

import onnx
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    DeduplicateInitializersPass,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

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
        with sdpa_kernel(SDPBackend.MATH), _AttentionOfFourAxes():
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


class _AttentionOfFourAxes(TorchFunctionMode):
    """Has `scaled_dot_product_attention` take [N, heads, T, C], all that the exporter can write.

    That of windows, [N, windows, heads, T, C], is that of so many pictures, and that
    without heads, [N, T, C], that of one with N heads.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        query, key, mask = given["query"], given["key"], given.get("attn_mask")
        if query.ndim == 4:
            return function(**given)
        if mask is not None:
            given["attn_mask"] = mask.expand(*query.shape[:-1], key.shape[-2])
        folded: dict[str, Any] = {
            name: value.reshape(-1, *value.shape[-3:]) if isinstance(value, Tensor) else value
            for name, value in given.items()
        }
        result: Tensor = function(**folded)
        return result.reshape(*query.shape[:-1], result.shape[-1])


def _cause(error: BaseException) -> str:
    """Return what went wrong first: the exporter wraps it in advice to PyTorch's developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0]
