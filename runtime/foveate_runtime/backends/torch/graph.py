"""An ONNX graph that torch runs, node by node."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper
from torch import Tensor

from foveate_runtime.backends.base import BackendError
from foveate_runtime.backends.torch.operators import OPERATORS, Result

OPSETS = range(13, 24)
"""The versions of ONNX's operators that `operators` has the semantics of."""

_OWN_DOMAIN = ("", "ai.onnx")


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One node: what it calls, and the names of the tensors it reads and writes."""

    name: str
    operator: str
    call: Callable[..., Result]
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """The nodes that lead to some outputs, and after each the tensors that no later node reads."""

    steps: tuple[Step, ...]
    done_with: tuple[tuple[str, ...], ...]


class TorchGraph:
    """The graph in the ONNX file `path`, its `weights` on `device`; raises BackendError."""

    def __init__(self, path: Path, device: torch.device) -> None:
        try:
            model = onnx.load(path)
        except (OSError, DecodeError) as error:
            raise BackendError("the file is no ONNX graph") from error
        for opset in model.opset_import:
            if opset.domain in _OWN_DOMAIN and opset.version not in OPSETS:
                raise BackendError(
                    f"the graph is of opset {opset.version}; "
                    f"torch runs opsets {OPSETS.start} to {OPSETS.stop - 1} here"
                )
        self.weights = {
            tensor.name: _to_tensor(tensor, device) for tensor in model.graph.initializer
        }
        self.inputs = tuple(
            value.name for value in model.graph.input if value.name not in self.weights
        )
        self.outputs = tuple(value.name for value in model.graph.output)
        self._steps = [self._step(node, device) for node in model.graph.node]

    def program(self, outputs: Sequence[str]) -> Program:
        """Return what computes `outputs`, and nothing else."""
        wanted, steps = set(outputs), []
        for step in reversed(self._steps):
            if wanted.intersection(step.writes):
                steps.append(step)
                wanted.update(step.reads)
        steps.reverse()
        last = {name: index for index, step in enumerate(steps) for name in step.reads}
        kept = {*outputs, *self.weights}
        return Program(
            steps=tuple(steps),
            done_with=tuple(
                tuple(name for name in set(step.reads) - kept if last[name] == index)
                for index, step in enumerate(steps)
            ),
        )

    def run(
        self, program: Program, inputs: Mapping[str, Tensor], outputs: Sequence[str]
    ) -> dict[str, Tensor]:
        """Run a program on the graph's inputs; raises BackendError."""
        tensors: dict[str, Any] = {**self.weights, **inputs, "": None}
        for step, done_with in zip(program.steps, program.done_with, strict=True):
            try:
                result = step.call(*(tensors[name] for name in step.reads))
            except (RuntimeError, IndexError, NotImplementedError) as error:
                raise BackendError(f"torch failed at {_title(step.name, step.operator)}") from error
            written = (result,) if isinstance(result, Tensor) else result
            tensors.update(zip(step.writes, written, strict=False))
            for name in done_with:
                tensors.pop(name, None)
        return {name: tensors[name] for name in outputs}

    def _step(self, node: onnx.NodeProto, device: torch.device) -> Step:
        name, operator = node.name or node.output[0], node.op_type
        title = _title(name, operator)
        attributes = {a.name: _value(a, device) for a in node.attribute}
        if node.op_type == "Split" and len(node.input) == 1:
            # Before opset 18 the number of parts is that of the node's outputs.
            attributes.setdefault("num_outputs", len(node.output))
        if node.op_type == "Constant":
            (value,) = attributes.values()
            self.weights[node.output[0]] = torch.as_tensor(value, device=device)
            return Step(name=name, operator=operator, call=_nothing, reads=(), writes=())
        call = OPERATORS.get(node.op_type) if node.domain in _OWN_DOMAIN else None
        if call is None:
            raise BackendError(f"{title}: torch has no such operator here")
        if attributes:
            try:
                inspect.signature(call).bind_partial(**attributes)
            except TypeError as error:
                raise BackendError(f"{title}: {error}") from error
        return Step(
            name=name,
            operator=operator,
            call=partial(call, **attributes),
            reads=tuple(node.input),
            writes=tuple(node.output),
        )


def _title(name: str, operator: str) -> str:
    return f"the node {name} ({operator})"


def _nothing() -> tuple[Tensor, ...]:
    return ()


def _value(attribute: onnx.AttributeProto, device: torch.device) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _to_tensor(value, device)
    return value.decode() if isinstance(value, bytes) else value


def _to_tensor(tensor: onnx.TensorProto, device: torch.device) -> Tensor:
    # A copy, for the array may lie in the file's own bytes, which are read-only.
    return torch.from_numpy(numpy_helper.to_array(tensor).copy()).to(device)
