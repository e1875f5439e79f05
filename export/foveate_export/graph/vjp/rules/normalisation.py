"""Normalisation, and reductions along axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate_export.graph.vjp.operation import Operation
from foveate_export.graph.vjp.rules.base import (
    Cotangents,
    axes_of,
    restored,
    rule,
    unsupported,
)


@rule("_native_batch_norm_legit_no_training", "batch_norm")
def _batch_norm(operation: Operation, cotangent: Any) -> Cotangents:
    if operation.arguments.get("training"):
        raise unsupported(operation, "it normalises by the batch")
    cotangent = cotangent[0] if isinstance(cotangent, Mapping) else cotangent
    scale = (operation["running_var"] + operation["eps"]).rsqrt()
    if operation["weight"] is not None:
        scale = scale * operation["weight"]
    return {"input": cotangent * scale.reshape(-1, *[1] * (cotangent.ndim - 3))}


@rule("_native_batch_norm_legit")
def _instance_norm(operation: Operation, cotangents: Mapping[int, Tensor]) -> Cotangents:
    """What an instance norm is traced to: the channels of all pictures as those of one."""
    x, weight = operation["input"], operation["weight"]
    if not isinstance(x.shape[0], int) or x.shape[0] != 1:
        raise unsupported(operation, "it normalises by the batch")
    cotangent = cotangents[0]
    if weight is not None:
        cotangent = cotangent * weight.reshape(-1, *[1] * (x.ndim - 2))
    axes = range(2 - x.ndim, 0)
    return {"input": _standardised(cotangent, x, axes, operation["eps"])}


@rule("layer_norm")
def _layer_norm(operation: Operation, cotangent: Tensor) -> Cotangents:
    if operation["weight"] is not None:
        cotangent = cotangent * operation["weight"]
    axes = _last(operation)
    return {"input": _standardised(cotangent, operation["input"], axes, operation["eps"])}


@rule("group_norm")
def _group_norm(operation: Operation, cotangent: Tensor) -> Cotangents:
    x, weight = operation["input"], operation["weight"]
    if weight is not None:
        cotangent = cotangent * weight.reshape(-1, *[1] * (x.ndim - 2))
    groups = x.shape[0], operation["num_groups"], -1
    grouped = cotangent.reshape(cotangent.shape[0], *groups)
    pulled = _standardised(grouped, x.reshape(groups), [-1], operation["eps"])
    return {"input": pulled.reshape(cotangent.shape)}


@rule("rms_norm")
def _rms_norm(operation: Operation, cotangent: Tensor) -> Cotangents:
    x, eps = operation["input"], operation["eps"]
    if operation["weight"] is not None:
        cotangent = cotangent * operation["weight"]
    axes = _last(operation)
    scale = (x.square().mean(axes, keepdim=True) + (_epsilon(x) if eps is None else eps)).rsqrt()
    shared = (cotangent * x).mean(axes, keepdim=True)
    return {"input": scale * (cotangent - x * scale * scale * shared)}


def _epsilon(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps


def _last(operation: Operation) -> list[int]:
    return [-1 - i for i in range(len(operation["normalized_shape"]))]


def _standardised(cotangent: Tensor, x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """Pull back through (x - mean) / sqrt(variance + eps) along `axes`, counted from the end."""
    axes = list(axes)
    centred = x - x.mean(axes, keepdim=True)
    scale = (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    normal = centred * scale
    shared = (cotangent * normal).mean(axes, keepdim=True)
    return scale * (cotangent - cotangent.mean(axes, keepdim=True) - normal * shared)


@rule("softmax", "_softmax")
def _softmax(operation: Operation, cotangent: Tensor) -> Cotangents:
    y, (axis,) = operation.output, axes_of(operation, operation.output)
    weighed = cotangent * y
    return {"self": weighed - y * weighed.sum(axis + 1, keepdim=True)}


@rule("log_softmax", "_log_softmax")
def _log_softmax(operation: Operation, cotangent: Tensor) -> Cotangents:
    (axis,) = axes_of(operation, operation.output)
    shares = operation.output.exp()
    return {"self": cotangent - shares * cotangent.sum(axis + 1, keepdim=True)}


@rule("mean", "sum")
def _mean(operation: Operation, cotangent: Tensor) -> Cotangents:
    x = operation["self"]
    axes = axes_of(operation, x)
    cotangent = restored(operation, cotangent, axes)
    if operation.name == "mean":
        cotangent = cotangent / _count(x, axes)
    return {"self": cotangent.expand(cotangent.shape[0], *x.shape)}


@rule("var", "std")
def _var(operation: Operation, cotangent: Tensor) -> Cotangents:
    x, correction = operation["self"], operation.arguments.get("correction")
    if "unbiased" in operation.arguments:
        correction = int(operation["unbiased"])
    axes = axes_of(operation, x)
    count = _count(x, axes) - (1 if correction is None else correction)
    cotangent = restored(operation, cotangent, axes) * (2 / count)
    if operation.name == "std":
        cotangent = cotangent / (2 * restored(operation, operation.output[None], axes))
    return {"self": cotangent * (x - x.mean(axes, keepdim=True))}


@rule("linalg_vector_norm")
def _norm(operation: Operation, cotangent: Tensor) -> Cotangents:
    x = operation["self"]
    order = operation["ord"]
    if order not in (1, 2):
        raise unsupported(operation, f"its order is {order}")
    axes = axes_of(operation, x)
    cotangent = restored(operation, cotangent, axes)
    if order == 1:
        return {"self": cotangent * x.sign()}
    norm = restored(operation, operation.output[None], axes)
    # PyTorch takes 0 for the derivative at 0.
    return {"self": cotangent * torch.where(norm > 0, x / norm.clamp(min=_epsilon(x) ** 2), 0.0)}


@rule("amax", "amin")
def _amax(operation: Operation, cotangent: Tensor) -> Cotangents:
    x = operation["self"]
    axes = axes_of(operation, x)
    extreme = restored(operation, operation.output[None], axes)
    # PyTorch shares this one out among equal maxima.
    equal = (x == extreme[0]).to(cotangent.dtype)
    shares = equal / equal.sum(axes, keepdim=True)
    return {"self": restored(operation, cotangent, axes) * shares}


@rule("max", "min")
def _max(operation: Operation, cotangents: Any) -> Cotangents:
    x = operation["self"]
    (axis,) = axes_of(operation, x)
    _, index = operation.output
    cotangent = restored(operation, cotangents[0], [axis])
    index = restored(operation, index[None], [axis])[0]
    places = torch.arange(x.shape[axis]).reshape(-1, *[1] * (x.ndim - axis - 1))
    return {"self": cotangent * (index == places).to(cotangent.dtype)}


def _count(x: Tensor, axes: Sequence[int]) -> int:
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return count
