"""Operators that move values and change none."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from foveate_export.graph.vjp.operation import Operation
from foveate_export.graph.vjp.rules.base import Cotangents, padded, rule, summed_to, unsupported


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze",
      "clone", "contiguous", "alias", "dropout", "feature_dropout", "to", "_to_copy")  # fmt: skip
def _reshape(operation: Operation, cotangent: Tensor) -> Cotangents:
    name = "input" if "input" in operation.arguments else "self"
    value = operation[name]
    return {name: cotangent.reshape(cotangent.shape[0], *value.shape).to(value.dtype)}


@rule("type_as")
def _type_as(operation: Operation, cotangent: Tensor) -> Cotangents:
    x, other = operation["self"], operation["other"]
    nothing = other.new_zeros(cotangent.shape[0], *other.shape)
    return {"self": cotangent.to(x.dtype), "other": nothing}


@rule("transpose")
def _transpose(operation: Operation, cotangent: Tensor) -> Cotangents:
    axes = [_axis(operation, operation[name]) for name in ("dim0", "dim1")]
    return {"self": cotangent.transpose(axes[0] + 1, axes[1] + 1)}


@rule("t")
def _t(_: Operation, cotangent: Tensor) -> Cotangents:
    return {"self": cotangent.transpose(-1, -2)}


@rule("permute")
def _permute(operation: Operation, cotangent: Tensor) -> Cotangents:
    axes = [_axis(operation, axis) for axis in operation["dims"]]
    return {"self": cotangent.permute(0, *(axes.index(i) + 1 for i in range(len(axes))))}


@rule("expand")
def _expand(operation: Operation, cotangent: Tensor) -> Cotangents:
    return {"self": summed_to(cotangent, operation["self"])}


@rule("repeat")
def _repeat(operation: Operation, cotangent: Tensor) -> Cotangents:
    x, times = operation["self"], operation["repeats"]
    sizes = [1] * (len(times) - x.ndim) + list(x.shape)
    pairs = [each for pair in zip(times, sizes, strict=True) for each in pair]
    apart = cotangent.reshape(cotangent.shape[0], *pairs)
    return {"self": apart.sum([*range(1, apart.ndim, 2)]).reshape(cotangent.shape[0], *x.shape)}


@rule("cat")
def _cat(operation: Operation, cotangent: Tensor) -> Cotangents:
    axis = _axis(operation, operation["dim"])
    sizes = [tensor.shape[axis] for tensor in operation["tensors"]]
    return {"tensors": list(torch.split(cotangent, sizes, axis + 1))}


@rule("stack")
def _stack(operation: Operation, cotangent: Tensor) -> Cotangents:
    axis = operation["dim"] % operation.output.ndim
    return {"tensors": list(cotangent.unbind(axis + 1))}


@rule("split", "split_with_sizes", "chunk", "unbind")
def _split(operation: Operation, cotangents: Mapping[int, Tensor]) -> Cotangents:
    some = next(iter(cotangents.values()))
    whole = [
        cotangents[index] if index in cotangents else some.new_zeros(some.shape[0], *part.shape)
        for index, part in enumerate(operation.output)
    ]
    join = torch.stack if operation.name == "unbind" else torch.cat
    return {"self": join(whole, _axis(operation, operation["dim"]) + 1)}


@rule("slice")
def _slice(operation: Operation, cotangent: Tensor) -> Cotangents:
    axis = _axis(operation, operation["dim"])
    step = operation["step"]
    size = operation["self"].shape[axis]
    start = operation["start"] or 0
    start = max(start + size, 0) if start < 0 else min(start, size)
    reach = operation.output.shape[axis]
    if step != 1:
        # Zeros behind every value, for those that were left out.
        cotangent = padded(cotangent.unsqueeze(axis + 2), axis + 2, 0, step - 1)
        cotangent = cotangent.flatten(axis + 1, axis + 2)
        reach = reach * step
    return {"self": padded(cotangent, axis + 1, start, size - start - reach)}


@rule("select")
def _select(operation: Operation, cotangent: Tensor) -> Cotangents:
    axis = _axis(operation, operation["dim"])
    size = operation["self"].shape[axis]
    index = operation["index"]
    index = index + size if index < 0 else index
    return {"self": padded(cotangent.unsqueeze(axis + 1), axis + 1, index, size - index - 1)}


@rule("index_select")
def _index_select(operation: Operation, cotangent: Tensor) -> Cotangents:
    axis = _axis(operation, operation["dim"])
    return {"self": _put_back(operation, cotangent, axis, operation["index"])}


@rule("index")
def _index(operation: Operation, cotangent: Tensor) -> Cotangents:
    given = [(axis, index) for axis, index in enumerate(operation["indices"]) if index is not None]
    if len(given) != 1 or given[0][1].ndim != 1 or given[0][1].dtype == torch.bool:
        raise unsupported(operation, "it takes more than some positions of one axis")
    return {"self": _put_back(operation, cotangent, *given[0])}


def _put_back(operation: Operation, cotangent: Tensor, axis: int, index: Tensor) -> Tensor:
    size = operation["self"].shape[axis]
    places = (index % size)[:, None] == torch.arange(size)
    moved: Tensor = cotangent.movedim(axis + 1, -1) @ places.to(cotangent.dtype)
    return moved.movedim(-1, axis + 1)


@rule("roll")
def _roll(operation: Operation, cotangent: Tensor) -> Cotangents:
    if not operation["dims"]:
        raise unsupported(operation, "it goes over all axes, and so over the pictures")
    axes = [_axis(operation, axis) + 1 for axis in operation["dims"]]
    return {"self": cotangent.roll([-shift for shift in operation["shifts"]], axes)}


@rule("flip")
def _flip(operation: Operation, cotangent: Tensor) -> Cotangents:
    return {"self": cotangent.flip([_axis(operation, axis) + 1 for axis in operation["dims"]])}


@rule("pad", "constant_pad_nd")
def _pad(operation: Operation, cotangent: Tensor) -> Cotangents:
    if operation.arguments.get("mode", "constant") != "constant":
        raise unsupported(operation, f"its mode is {operation['mode']}")
    widths: Sequence[int] = operation["pad"]
    for place, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True), 1):
        cotangent = padded(cotangent, cotangent.ndim - place, -before, -after)
    return {"self": cotangent}


def _axis(operation: Operation, axis: int) -> int:
    """Count an axis of the input, or of a list's first tensor, from the front."""
    value = operation.arguments.get("self")
    value = operation["tensors"][0] if value is None else value
    return axis % int(value.ndim)
