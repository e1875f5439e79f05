"""What the rules are made of: their table, and arithmetic on axes and shapes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.nn import functional

from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.vjp.operation import Operation

Cotangents = Mapping[str, Any]
"""By argument name: one tensor, or for an argument that is a list one for each."""

Rule = Callable[[Operation, Any], Cotangents]
"""The second argument is the cotangent of the output; for an operator that returns
several, a dictionary of those that have one, by their position."""

RuleT = TypeVar("RuleT", bound=Rule)

RULES: dict[str, Rule] = {}
"""The rules by operator."""


def rule(*operators: str) -> Callable[[RuleT], RuleT]:
    """Make a function the rule of `operators`."""

    def add(function: RuleT) -> RuleT:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return add


def unsupported(operation: Operation, why: str) -> UnsupportedHeadError:
    """Return the error that an operation cannot be differentiated."""
    return UnsupportedHeadError(f"{operation} cannot be differentiated: {why}")


def axes_of(operation: Operation, value: Tensor) -> list[int]:
    """Return the axes of `value` that the argument `dim` names, counted from the front.

    Raises:
        UnsupportedHeadError: it names none, which means all, and so the pictures too.
    """
    dim = operation.arguments.get("dim")
    if dim is None or dim == []:
        raise unsupported(operation, "it goes over all axes, and so over the pictures")
    return sorted(axis % value.ndim for axis in (dim if isinstance(dim, Sequence) else [dim]))


def restored(operation: Operation, cotangent: Tensor, axes: Sequence[int]) -> Tensor:
    """Give a cotangent back the axes that a reduction took away, each of size 1."""
    if not operation["keepdim"]:
        for axis in axes:
            cotangent = cotangent.unsqueeze(axis + 1)
    return cotangent


def summed_to(cotangent: Tensor, value: Tensor) -> Tensor:
    """Sum a cotangent over the axes along which `value` was repeated."""
    more = cotangent.ndim - 1 - value.ndim
    if more:
        cotangent = cotangent.sum([*range(1, more + 1)])
    repeated = [
        axis
        for axis, size in enumerate(value.shape, 1)
        if isinstance(size, int) and size == 1 and cotangent.shape[axis] != 1
    ]
    return cotangent.sum(repeated, keepdim=True) if repeated else cotangent


def padded(tensor: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Add zeros along one axis, or take values off where a width is negative."""
    if not before and not after:
        return tensor
    return functional.pad(tensor, (0, 0) * (tensor.ndim - axis - 1) + (before, after))
