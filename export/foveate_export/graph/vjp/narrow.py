"""Cotangents that are 0 but for a part of one axis, and kept as that part.

Where a class token alone leads to the logits, the gradient of the last block is 0 at
every other token, down to its attention. What works on each token by itself is
pulled back through for that token alone, which for five classes saves most of what
the maps of a vision transformer cost.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from foveate_export.graph.vjp.operation import Operation
from foveate_export.graph.vjp.rules import RULES
from foveate_export.graph.vjp.rules.base import padded

_EACH_TOKEN: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("linear", "layer_norm", "rms_norm"), ("input",)),
    **dict.fromkeys(("gelu", "relu", "silu", "tanh", "sigmoid", "clone", "softmax"), ("self",)),
    **dict.fromkeys(("add", "sub", "mul", "div"), ("self", "other")),
    **dict.fromkeys(("matmul", "bmm"), ("self",)),
    "scaled_dot_product_attention": ("query", "attn_mask"),
}
"""By operator, the arguments of which a part gives the same part of the output."""

_TO_THE_END = 2**63 - 1
"""What `x[:]` is traced with."""

_VIEWS = frozenset({"view", "_unsafe_view", "reshape", "flatten", "unflatten"})


@dataclass(frozen=True)
class Narrow:
    """A cotangent of which only a part is not 0.

    Attributes:
        part: the part, [K, ...].
        axis: the axis that it is a part of, counted from the end.
        start: where it begins.
        size: of the whole axis.
    """

    part: Tensor
    axis: int
    start: int
    size: int

    def whole(self) -> Tensor:
        """Return the cotangent with its zeros."""
        axis = self.part.ndim + self.axis
        after = self.size - self.start - self.part.shape[axis]
        return padded(self.part, axis, self.start, after)

    def of(self, value: Any) -> Any:
        """Return the same part of a tensor that has the axis, and anything else as it is."""
        if not self.cuts(value):
            return value
        return value.narrow(value.ndim + self.axis, self.start, self.part.shape[self.axis])

    def cuts(self, value: Any) -> bool:
        """Return whether a tensor has the whole axis."""
        return (
            isinstance(value, Tensor)
            and value.ndim >= -self.axis
            and value.shape[self.axis] == self.size
        )


def whole(cotangent: Any) -> Any:
    """Return a cotangent, or those of several outputs, as tensors."""
    if isinstance(cotangent, Mapping):
        return {index: whole(value) for index, value in cotangent.items()}
    return cotangent.whole() if isinstance(cotangent, Narrow) else cotangent


def total(first: Any, second: Any) -> Any:
    """Add two cotangents of one tensor."""
    if isinstance(first, Narrow) and isinstance(second, Narrow):
        same = (first.axis, first.start, first.part.shape) == (
            second.axis, second.start, second.part.shape,
        )  # fmt: skip
        if same:
            return replace(first, part=first.part + second.part)
    return whole(first) + whole(second)


def pull(operation: Operation, cotangent: Any) -> Mapping[str, Any]:
    """Return the cotangents of an operation's inputs, narrow ones where that is possible."""
    if operation.name == "select" and isinstance(cotangent, Tensor):
        value = operation["self"]
        axis = operation["dim"] % value.ndim
        size, index = value.shape[axis], operation["index"]
        # Of the pictures or of the channels a part is worth nothing.
        if 0 < axis < value.ndim - 1 and isinstance(size, int):
            part = cotangent.unsqueeze(axis + 1)
            return {"self": Narrow(part, axis - value.ndim, index % size, size)}
    if isinstance(cotangent, Narrow):
        moved = _moved(operation, cotangent)
        if moved is not None:
            return {"self": moved}
        if _by_token(operation, cotangent):
            return _pull_part(operation, cotangent)
    return RULES[operation.name](operation, whole(cotangent))


def _by_token(operation: Operation, cotangent: Narrow) -> bool:
    name, axis = operation.name, cotangent.axis
    if name in {"layer_norm", "rms_norm"}:
        return len(operation["normalized_shape"]) < -axis
    if name == "softmax":
        axes = int(operation.output.ndim)
        return int(operation["dim"]) % axes != axes + axis
    if name in {"matmul", "bmm", "scaled_dot_product_attention"}:
        return axis == -2
    return name in _EACH_TOKEN


def _pull_part(operation: Operation, cotangent: Narrow) -> Mapping[str, Any]:
    names = [
        name for name in _EACH_TOKEN[operation.name] if cotangent.cuts(operation.arguments[name])
    ]
    arguments = {
        name: cotangent.of(value) if name in names else value
        for name, value in operation.arguments.items()
    }
    part = replace(operation, arguments=arguments, output=cotangent.of(operation.output))
    found = RULES[operation.name](part, cotangent.part)
    return {
        name: replace(cotangent, part=value) if name in names else value
        for name, value in found.items()
    }


def _moved(operation: Operation, cotangent: Narrow) -> Narrow | None:
    """Return the cotangent of what was transposed, or taken with the axis as it is."""
    value, output = operation.arguments.get("self"), operation.output
    place = output.ndim + cotangent.axis
    if operation.name == "transpose":
        axes = [int(operation[name]) % output.ndim for name in ("dim0", "dim1")]
        before = axes[1 - axes.index(place)] if place in axes else place
        part = cotangent.part.transpose(axes[0] + 1, axes[1] + 1)
        return replace(cotangent, part=part, axis=before - output.ndim)
    if operation.name == "slice" and operation["end"] == _TO_THE_END and not operation["start"]:
        return cotangent if operation["step"] == 1 else None
    if operation.name not in _VIEWS or not isinstance(value, Tensor):
        return None
    kept = value.shape[1 : place + 1] == output.shape[1 : place + 1]
    behind = value.shape[place + 1 :]
    if not kept or behind.numel() != output.shape[place + 1 :].numel():
        return None
    part = cotangent.part.reshape(*cotangent.part.shape[: place + 2], *behind)
    return replace(cotangent, part=part, axis=place - value.ndim)
