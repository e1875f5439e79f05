"""Pooling over windows of rows and columns, and resizing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from foveate_export.graph.vjp.operation import Operation
from foveate_export.graph.vjp.rules.base import Cotangents, rule, unsupported


@rule("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(operation: Operation, cotangent: Tensor) -> Cotangents:
    windows = [
        [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]
        for size, cells in zip(_size(operation["self"]), _size(operation.output), strict=True)
    ]
    shares = [[(start, end, end - start) for start, end in axis] for axis in windows]
    return {"self": _average(cotangent, shares, _size(operation["self"]))}


@rule("avg_pool2d")
def _avg_pool2d(operation: Operation, cotangent: Tensor) -> Cotangents:
    if operation["divisor_override"] is not None:
        raise unsupported(operation, "it has a divisor of its own")
    kernel, padding = _pair(operation["kernel_size"]), _pair(operation["padding"])
    stride = _pair(operation["stride"] or kernel)
    shares = []
    for axis, size in enumerate(_size(operation["self"])):
        windows = []
        for i in range(_size(operation.output)[axis]):
            start = i * stride[axis] - padding[axis]
            end = min(start + kernel[axis], size + padding[axis])
            inside = max(start, 0), min(end, size)
            count = end - start if operation["count_include_pad"] else inside[1] - inside[0]
            windows.append((*inside, count))
        shares.append(windows)
    return {"self": _average(cotangent, shares, _size(operation["self"]))}


def _average(
    cotangent: Tensor, shares: Sequence[Sequence[tuple[int, int, int]]], size: Sequence[int]
) -> Tensor:
    """Pull back through an average over windows, which treats rows and columns apart.

    Of each row and each column of windows `shares` holds the first cell, the
    end and the divisor.
    """
    rows, columns = (
        [
            [1 / count if start <= cell < end else 0.0 for start, end, count in windows]
            for cell in range(cells)
        ]
        for windows, cells in zip(shares, size, strict=True)
    )
    return _by_axis(cotangent, rows, columns)


def _by_axis(
    cotangent: Tensor, rows: Sequence[Sequence[float]], columns: Sequence[Sequence[float]]
) -> Tensor:
    """Pull back through y = P_rows^T x P_columns, with P [cells of x, cells of y] by axis."""
    left, right = (torch.tensor(axis, dtype=cotangent.dtype) for axis in (rows, columns))
    return left @ cotangent @ right.T


@rule("upsample_nearest2d", "upsample_bilinear2d")
def _upsample(operation: Operation, cotangent: Tensor) -> Cotangents:
    name = "input" if "input" in operation.arguments else "self"
    sizes = _size(operation[name]), _size(operation.output)
    factors = operation.arguments.get("scale_factors") or [
        operation.arguments.get(f"scales_{axis}") for axis in "hw"
    ]
    linear = operation.name == "upsample_bilinear2d"
    aligned = linear and operation["align_corners"]
    rows, columns = (
        _shares(cells, resized, factor, linear=linear, aligned=aligned)
        for cells, resized, factor in zip(*sizes, factors, strict=True)
    )
    return {name: _by_axis(cotangent, rows, columns)}


def _shares(
    cells: int, resized: int, factor: float | None, *, linear: bool, aligned: bool
) -> list[list[float]]:
    """Return what each of `cells` gives to each of `resized` along one axis, as PyTorch does."""
    # In float32, as there: at a border between two cells that decides.
    step = np.float32(1 / factor if factor else cells / resized)
    if aligned:
        step = np.float32((cells - 1) / (resized - 1) if resized > 1 else 0)
    shares = [[0.0] * resized for _ in range(cells)]
    for place in range(resized):
        if not linear:
            shares[min(int(np.float32(place) * step), cells - 1)][place] = 1.0
            continue
        middle = np.float32(0 if aligned else 0.5)
        source = max(float((np.float32(place) + middle) * step - middle), 0.0)
        first = min(int(source), cells - 1)
        further = min(source - first, 1.0)
        shares[first][place] += 1 - further
        shares[min(first + 1, cells - 1)][place] += further
    return shares


@rule("max_pool2d")
def _max_pool2d(operation: Operation, cotangent: Tensor) -> Cotangents:
    x = operation["self"]
    kernel, padding = _pair(operation["kernel_size"]), _pair(operation["padding"])
    stride, dilation = _pair(operation["stride"] or kernel), _pair(operation["dilation"])
    # How far the windows reach, and so what is missing at the end of the picture.
    reach = [
        (cells - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1
        for i, cells in enumerate(_size(operation.output))
    ]
    edges = [(padding[i], reach[i] - padding[i] - size) for i, size in enumerate(_size(x))]
    borders = (*edges[1], *edges[0])
    padded = functional.pad(x, borders, value=float("-inf")) if any(borders) else x
    spans = [(cells - 1) * stride[i] + 1 for i, cells in enumerate(_size(operation.output))]
    offsets = [
        (row * dilation[0], column * dilation[1])
        for row in range(kernel[0])
        for column in range(kernel[1])
    ]
    values = torch.stack(
        [
            padded[:, :, top : top + spans[0] : stride[0], left : left + spans[1] : stride[1]]
            for top, left in offsets
        ],
        2,
    )
    first = values.argmax(2, keepdim=True) == torch.arange(len(offsets)).reshape(-1, 1, 1)
    routed = cotangent.unsqueeze(3) * first.to(cotangent.dtype)
    # A kernel that is 1 at one offset and 0 elsewhere puts its window's value there.
    kernels = torch.eye(len(offsets), dtype=cotangent.dtype).reshape(-1, 1, *kernel)
    placed = functional.conv_transpose2d(
        routed.flatten(0, 2), kernels, stride=stride, dilation=dilation
    )
    cropped = functional.pad(placed, [-width for width in borders]) if any(borders) else placed
    return {"self": cropped.reshape(*cotangent.shape[:3], *_size(x))}


@rule("adaptive_max_pool2d")
def _adaptive_max_pool2d(operation: Operation, cotangents: Any) -> Cotangents:
    x, largest = operation["self"], operation.output[0]
    cotangent = cotangents[0] if isinstance(cotangents, Mapping) else cotangents
    rows, columns = _size(largest)
    if x.shape[2] % rows or x.shape[3] % columns:
        raise unsupported(operation, "its windows overlap")
    parts = (*x.shape[:2], rows, x.shape[2] // rows, columns, x.shape[3] // columns)
    windows = x.reshape(parts).transpose(3, 4).flatten(4)
    first = windows.argmax(4, keepdim=True) == torch.arange(windows.shape[4])
    routed = cotangent.unsqueeze(-1) * first.to(cotangent.dtype)
    placed = routed.unflatten(-1, (parts[3], parts[5])).transpose(4, 5)
    return {"self": placed.reshape(placed.shape[0], *x.shape)}


SELECTING = frozenset({"amax", "amin", "max", "min", "max_pool2d", "adaptive_max_pool2d"})
"""The operators that hand a cotangent to the largest of several values."""


def preserves_sums(operation: Operation) -> bool:
    """Whether the cotangent of the input sums to that of the output in every channel.

    A window of a maximum hands all it is given to one cell, and a window of an
    average shares it out, unless a part falls on padding.
    """
    if operation.name == "avg_pool2d":
        return not any(_pair(operation["padding"])) and operation["divisor_override"] is None
    return operation.name in {"max_pool2d", "adaptive_avg_pool2d", "dropout", "clone", "alias"}


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, Sequence) else [value]
    return values[0], values[-1]


def _size(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[-2], tensor.shape[-1]
