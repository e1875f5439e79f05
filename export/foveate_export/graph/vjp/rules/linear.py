"""Linear layers, convolutions, products of activations, and attention."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from foveate_export.graph.vjp.operation import Operation
from foveate_export.graph.vjp.rules.base import Cotangents, padded, rule, summed_to, unsupported


@rule("linear")
def _linear(operation: Operation, cotangent: Tensor) -> Cotangents:
    return {"input": cotangent @ operation["weight"]}


@rule("addmm")
def _addmm(operation: Operation, cotangent: Tensor) -> Cotangents:
    return {"mat1": cotangent @ operation["mat2"].T * operation["alpha"]}


@rule("matmul", "bmm", "mm")
def _matmul(operation: Operation, cotangent: Tensor) -> Cotangents:
    right = "other" if operation.name == "matmul" else "mat2"
    first, second = operation["self"], operation[right]
    if min(first.ndim, second.ndim) < 2:
        raise unsupported(operation, "it multiplies with a vector")
    found = {}
    if "self" in operation.wanted:
        found["self"] = summed_to(cotangent @ second.mT, first)
    if right in operation.wanted:
        found[right] = summed_to(first.mT @ cotangent, second)
    return found


@rule("baddbmm")
def _baddbmm(operation: Operation, cotangent: Tensor) -> Cotangents:
    scaled = cotangent * operation["alpha"]
    return {
        "self": summed_to(cotangent * operation["beta"], operation["self"]),
        "batch1": scaled @ operation["batch2"].mT,
        "batch2": operation["batch1"].mT @ scaled,
    }


@rule("scaled_dot_product_attention")
def _attention(operation: Operation, cotangent: Tensor) -> Cotangents:
    """With P = softmax(scale q k^T + mask), y = P v."""
    query, key, value = (operation[name] for name in ("query", "key", "value"))
    if not is_plain_attention(operation):
        raise unsupported(operation, "it is causal, or its queries share keys")
    weights, scale = attention_weights(operation)
    by_weight = cotangent @ value.mT
    by_score = weights * (by_weight - (by_weight * weights).sum(-1, keepdim=True)) * scale
    return {
        "query": summed_to(by_score @ key, query),
        "key": summed_to(by_score.mT @ query, key),
        "value": summed_to(weights.mT @ cotangent, value),
    }


def is_plain_attention(operation: Operation) -> bool:
    """Whether every query of a `scaled_dot_product_attention` has a key, and sees all of them."""
    return not operation["is_causal"] and not operation["enable_gqa"]


def attention_weights(operation: Operation) -> tuple[Tensor, float]:
    """Return the weights of a `scaled_dot_product_attention`, [N, heads, T, T], and its scale."""
    query, key, mask = (operation[name] for name in ("query", "key", "attn_mask"))
    scale = operation["scale"]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    # Each by the root, as PyTorch does, so that halves do not overflow.
    root = scale**0.5
    scores = (query * root) @ (key * root).mT
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        )
    return scores.softmax(-1), scale


@rule("conv1d", "conv2d")
def _conv(operation: Operation, cotangent: Tensor) -> Cotangents:
    x, weight = operation["input"], operation["weight"]
    kernel = weight.shape[2:]
    axes = len(kernel)
    stride, dilation = (_each_axis(operation[name], axes) for name in ("stride", "dilation"))
    if operation["padding"] == "same":
        padding = [dilation[i] * (kernel[i] - 1) // 2 for i in range(axes)]
    else:
        given = 0 if operation["padding"] == "valid" else operation["padding"]
        padding = _each_axis(given, axes)
    # Cells at the end that no window reached get a gradient of 0; `same` may pad one more there.
    unreached = [
        x.shape[2 + i]
        - (
            (operation.output.shape[2 + i] - 1) * stride[i]
            - 2 * padding[i]
            + dilation[i] * (kernel[i] - 1)
            + 1
        )
        for i in range(axes)
    ]
    transposed: Any = functional.conv_transpose1d if axes == 1 else functional.conv_transpose2d
    pulled = transposed(
        cotangent.flatten(0, 1),
        weight,
        stride=stride,
        padding=padding,
        output_padding=[max(cells, 0) for cells in unreached],
        groups=operation["groups"],
        dilation=dilation,
    )
    for axis, cells in enumerate(unreached, 2):
        pulled = padded(pulled, axis, 0, min(cells, 0))
    return {"input": pulled.reshape(*cotangent.shape[:2], *pulled.shape[1:])}


@rule("conv_transpose1d", "conv_transpose2d")
def _conv_transpose(operation: Operation, cotangent: Tensor) -> Cotangents:
    x, weight = operation["input"], operation["weight"]
    axes = weight.ndim - 2
    convolve: Any = functional.conv1d if axes == 1 else functional.conv2d
    pulled = convolve(
        cotangent.flatten(0, 1),
        weight,
        stride=_each_axis(operation["stride"], axes),
        padding=_each_axis(operation["padding"], axes),
        dilation=_each_axis(operation["dilation"], axes),
        groups=operation["groups"],
    )
    # More padding at the end of the output than a stride is no cell of the input's.
    for axis in range(2, pulled.ndim):
        pulled = padded(pulled, axis, 0, x.shape[axis] - pulled.shape[axis])
    return {"input": pulled.reshape(*cotangent.shape[:2], *pulled.shape[1:])}


def _each_axis(value: Any, axes: int) -> list[int]:
    values = list(value) if isinstance(value, Sequence) else [value]
    return values if len(values) == axes else values * axes
