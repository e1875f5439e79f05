"""An ONNX file as a network of torch, so that any head of it can be differentiated.

It needs torch. The runtime's torch graph has the operators; each node becomes a
module that is called as the node, so that layers are found and named as in the file.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate_export.errors import ExportError
from foveate_export.existing.file import OneByOne
from foveate_export.existing.source import Existing
from foveate_export.pictures import Pictures
from foveate_export.proof.comparison import TOLERANCES, relative_error
from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.torch.graph import Step, TorchGraph
from foveate_train.classifier import Classifier

_BATCH = 4

_SIZES = frozenset(
    {"Reshape", "Expand", "Slice", "Squeeze", "Unsqueeze", "Pad", "Tile", "Split", "TopK"}
    | {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceLogSumExp"}
    | {"ConstantOfShape"}
)
"""Operators whose constants of whole numbers are sizes and axes, which a trace takes as numbers."""


def as_classifier(source: Existing, labels: tuple[str, ...], pictures: Pictures) -> Classifier:
    """Return the classifier in an ONNX file as a network of torch that answers as the file does.

    Args:
        source: the file, not yet edited.
        labels: the name of each class, or of the one output.
        pictures: what the two are compared on.

    Raises:
        ExportError: it computes in other numbers than float32, has an operator that
            torch has not here, or answers otherwise.
    """
    quantised = [node.op_type for node in source.model.graph if "Quantize" in node.op_type]
    if source.precision != "fp32" or quantised:
        raise ExportError("only files in float32 are differentiated")
    try:
        module = Network(source).eval()
    except BackendError as error:
        raise ExportError(str(error)) from error
    classifier = Classifier(
        name=source.path.name,
        arguments={},
        module=module,
        input=source.spec,
        labels=labels,
    )
    worst = _compare(source, module, pictures)
    said = f"run in torch; its outputs differ from the file's by {worst:.1e} of the largest"
    return replace(classifier, assumptions={**source.assumptions, "network": said})


def _compare(source: Existing, module: nn.Module, pictures: Pictures) -> float:
    """Return how far torch's outputs lie from the file's; raises ExportError where too far."""
    file = OneByOne(source)
    worst = 0.0
    for images in pictures.batches(_BATCH):
        mean, std = (np.asarray(values) for values in (source.spec.mean, source.spec.std))
        pixels = ((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
        try:
            with torch.no_grad():
                got = module(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()
        except (RuntimeError, IndexError, NotImplementedError, ValueError) as error:
            said = str(error).partition("\n")[0]
            raise ExportError(f"torch cannot run its nodes on several pictures ({said})") from error
        (wanted,) = file.run(images)
        if got.size != wanted.size:
            raise ExportError("torch gives outputs of another shape")
        got, wanted = got.reshape(len(images), -1), wanted.reshape(len(images), -1)
        worst = max(worst, relative_error(got, wanted, (1,)))
    if not worst <= TOLERANCES["fp32"].logits:
        raise ExportError(f"torch's outputs differ from the file's by {worst:.2g} of the largest")
    return worst


def module_name(node: str) -> str:
    """Return what the module of a node is called: a dot would separate modules."""
    return node.replace(".", "_")


class Network(nn.Module):
    """The nodes of a file that lead to its output: takes [N, C, H, W] as every network here."""

    def __init__(self, source: Existing) -> None:
        super().__init__()
        self._nhwc, self._bgr = source.layout == "nhwc", source.bgr
        self._input, self._output = source.input, source.output
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            ir.save(source.model, path)
            graph = TorchGraph(path, torch.device("cpu"))
        weights = graph.weights
        self._calls: list[tuple[str, Step]] = []
        for step in graph.program([self._output]).steps:
            name = module_name(step.name)
            while name in self._modules:
                name += "_"
            self.add_module(name, _linear(step, weights) or _Node(step, weights))
            self._calls.append((name, step))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the file's output for normalised pixels, float32 [N, C, H, W]."""
        value = pixels.flip(1) if self._bgr else pixels
        values: dict[str, Any] = {self._input: value.permute(0, 2, 3, 1) if self._nhwc else value}
        for name, step in self._calls:
            given = [values[read] for read in step.reads if read in values]
            result = self.get_submodule(name)(*given)
            written = (result,) if isinstance(result, Tensor) else result
            values.update(zip(step.writes, written, strict=False))
        output: Tensor = values[self._output]
        return output


@dataclass(frozen=True)
class _Numbers:
    """Sizes or axes, where an operator asks a tensor for them."""

    values: list[int]

    def tolist(self) -> list[int]:
        return list(self.values)

    def __iter__(self) -> Iterator[int]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def numel(self) -> int:
        return len(self.values)

    def item(self) -> int:
        return self.values[0]


class _Node(nn.Module):
    """One node; takes those of its inputs that are no constants."""

    def __init__(self, step: Step, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.places: list[object] = []
        for index, name in enumerate(step.reads):
            value = weights.get(name)
            if not name:
                self.places.append(_Fixed(None))
            elif value is None:
                self.places.append(None)
            elif step.operator in _SIZES and index and not value.is_floating_point():
                self.places.append(_Fixed(_Numbers([int(v) for v in value.flatten().tolist()])))
            else:
                # Under the names that modules of torch have, where there is a choice.
                kept = ("input", "weight", "bias")[index] if index < 3 else f"constant_{index}"
                if value.is_floating_point():
                    self.register_parameter(kept, nn.Parameter(value, requires_grad=False))
                else:
                    self.register_buffer(kept, value)
                self.places.append(kept)
        self._call = _plainer(step, self)
        if step.operator == "LayerNormalization":
            # As modules of torch call it: heads behind a norm are found by it.
            self.eps = float(_options(step).get("epsilon", 1e-5))

    def forward(self, *given: Any) -> Any:
        rest = iter(given)
        arguments = [
            next(rest)
            if place is None
            else place.value
            if isinstance(place, _Fixed)
            else getattr(self, str(place))
            for place in self.places
        ]
        return self._call(*arguments)


@dataclass(frozen=True)
class _Fixed:
    """An argument that is the same in every call, and no tensor."""

    value: object


def _options(step: Step) -> Mapping[str, Any]:
    return step.call.keywords if isinstance(step.call, partial) else {}


def _linear(step: Step, weights: Mapping[str, Tensor]) -> nn.Linear | None:
    """Return a node as a linear layer, by which heads are found; None where it is none."""
    options, constants = _options(step), [weights.get(name) for name in step.reads[1:]]
    if step.operator != "Gemm" or step.reads[0] in weights or any(c is None for c in constants):
        return None
    weight, bias = (*constants, None)[:2]
    plain = all(options.get(name, 1) == 1 for name in ("alpha", "beta"))
    if weight is None or not plain or options.get("transA"):
        return None
    rows = weight if options.get("transB") else weight.T.contiguous()
    if bias is not None and bias.shape != rows.shape[:1]:
        return None
    layer = nn.Linear(rows.shape[1], rows.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(rows, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _plainer(step: Step, node: _Node) -> Callable[..., Any]:
    """Return a node's call by the function of torch that a head is made of, where one does it."""
    options = _options(step)
    weight = getattr(node, "weight", None)
    constant = isinstance(weight, Tensor) and weight.ndim == 2
    if step.operator == "MatMul" and constant:
        return lambda x, w: functional.linear(x, w.T)
    plain = all(options.get(name, 1) == 1 for name in ("alpha", "beta"))
    if step.operator == "Gemm" and constant and plain and not options.get("transA"):
        turned = bool(options.get("transB"))
        return lambda x, w, b=None: functional.linear(x, w if turned else w.T, b)
    if step.operator == "GlobalAveragePool":
        return lambda x: functional.adaptive_avg_pool2d(x, 1)
    if step.operator == "Flatten" and options.get("axis", 1) == 1:
        return lambda x: x.flatten(1)
    if step.operator == "Slice" and all(isinstance(each, _Fixed) for each in node.places[1:]):
        return partial(_sliced, step.call)
    return step.call


def _sliced(otherwise: Callable[..., Any], x: Tensor, *limits: _Numbers) -> Any:
    starts, ends = (each.tolist() for each in limits[:2])
    axes = limits[2].tolist() if len(limits) > 2 and limits[2] else list(range(len(starts)))
    steps = limits[3].tolist() if len(limits) > 3 and limits[3] else [1] * len(starts)
    if min(steps) < 1:
        return otherwise(x, *limits)
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]
