"""Vector-Jacobian products of the operators that classifiers are made of.

A rule takes an operation y = f(x, ...), evaluated on a batch, and the
cotangents of K classes, dz[class] / dy, float [N, K, *y.shape[1:]], and returns
the cotangents of the inputs, [N, K, *x.shape[1:]], by argument name. Every
operator but those that mix pictures can have a rule: axis 0 is the batch, and
the axes of a cotangent stand one further than those of its tensor.

The derivatives are those of PyTorch, also where a function has none: 0 at the
kink of the ReLU, all to the first of several equal maxima of a pooling's window,
and equal parts to those of `amax`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
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


def over_classes(tensor: Tensor) -> Tensor:
    """Give [N, ...] the axis of the classes: [N, 1, ...]."""
    return tensor.unsqueeze(1)


# Functions of one value: their derivatives, by the input x or by the output y.


def _silu_derivative(x: Tensor) -> Tensor:
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))


def _mish_derivative(x: Tensor) -> Tensor:
    slope = functional.softplus(x).tanh()
    return slope + x * x.sigmoid() * (1 - slope * slope)


_BY_INPUT: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu6": lambda x: (x > 0) & (x < 6),
    "hardsigmoid": lambda x: ((x > -3) & (x < 3)) / 6,
    "hardswish": lambda x: torch.where(x < 3, (x / 3 + 0.5) * (x > -3), 1.0),
    "silu": _silu_derivative,
    "mish": _mish_derivative,
    "neg": lambda x: -torch.ones_like(x),
}

_BY_OUTPUT: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda y: y > 0,
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
}


@rule(*_BY_INPUT)
def _by_input(operation: Operation, cotangent: Tensor) -> Cotangents:
    return _scaled(cotangent, _BY_INPUT[operation.name](operation["self"]))


@rule(*_BY_OUTPUT)
def _by_output(operation: Operation, cotangent: Tensor) -> Cotangents:
    return _scaled(cotangent, _BY_OUTPUT[operation.name](operation.output))


@rule("leaky_relu")
def _leaky_relu(operation: Operation, cotangent: Tensor) -> Cotangents:
    derivative = torch.where(operation["self"] > 0, 1.0, operation["negative_slope"])
    return _scaled(cotangent, derivative)


@rule("hardtanh")
def _hardtanh(operation: Operation, cotangent: Tensor) -> Cotangents:
    x = operation["self"]
    return _scaled(cotangent, (x > operation["min_val"]) & (x < operation["max_val"]))


@rule("elu")
def _elu(operation: Operation, cotangent: Tensor) -> Cotangents:
    scale = operation["scale"]
    below = operation["input_scale"] * (operation.output + operation["alpha"] * scale)
    return _scaled(cotangent, torch.where(operation["self"] > 0, scale, below))


def _scaled(cotangent: Tensor, derivative: Tensor) -> Cotangents:
    return {"self": cotangent * over_classes(derivative).to(cotangent.dtype)}


# Arithmetic. An input may be broadcast to the output's shape.


@rule("add", "sub")
def _add(operation: Operation, cotangent: Tensor) -> Cotangents:
    factor = operation["alpha"] * (-1 if operation.name == "sub" else 1)
    other = cotangent if factor == 1 else cotangent * factor
    return _unbroadcast(operation, {"self": cotangent, "other": other})


@rule("mul")
def _mul(operation: Operation, cotangent: Tensor) -> Cotangents:
    left, right = operation["self"], operation["other"]
    return _unbroadcast(
        operation,
        {
            "self": cotangent * _factor(right, operation),
            "other": cotangent * _factor(left, operation),
        },
    )


@rule("div")
def _div(operation: Operation, cotangent: Tensor) -> Cotangents:
    return _unbroadcast(operation, {"self": cotangent / _factor(operation["other"], operation)})


def _factor(value: Any, operation: Operation) -> Any:
    """Give a factor the axis of the classes, unless it has no axis for the pictures."""
    batched = isinstance(value, Tensor) and value.ndim == operation.output.ndim
    return over_classes(value) if batched else value


def _unbroadcast(operation: Operation, cotangents: dict[str, Tensor]) -> Cotangents:
    """Sum over the axes along which an input was repeated."""
    found: dict[str, Tensor] = {}
    for name, cotangent in cotangents.items():
        value = operation[name]
        if not isinstance(value, Tensor) or value.ndim != operation.output.ndim:
            continue
        sizes = zip(value.shape[1:], operation.output.shape[1:], strict=True)
        repeated = [axis for axis, (ours, whole) in enumerate(sizes, 2) if ours != whole]
        found[name] = cotangent.sum(repeated, keepdim=True) if repeated else cotangent
    return found


# Shapes.


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze",
      "clone", "contiguous", "alias", "dropout", "feature_dropout")  # fmt: skip
def _reshape(operation: Operation, cotangent: Tensor) -> Cotangents:
    name = "input" if "input" in operation.arguments else "self"
    value = operation[name]
    if value.shape[0] != operation.output.shape[0]:
        raise unsupported(operation, "it changes the axis of the pictures")
    return {name: cotangent.reshape(*cotangent.shape[:2], *value.shape[1:])}


@rule("transpose")
def _transpose(operation: Operation, cotangent: Tensor) -> Cotangents:
    axes = [_axis(operation, operation[name]) for name in ("dim0", "dim1")]
    return {"self": cotangent.transpose(axes[0] + 1, axes[1] + 1)}


@rule("permute")
def _permute(operation: Operation, cotangent: Tensor) -> Cotangents:
    axes = [operation.output.ndim + axis if axis < 0 else axis for axis in operation["dims"]]
    if axes[0] != 0:
        raise unsupported(operation, "it moves the axis of the pictures")
    inverse = [axes.index(axis) + 1 for axis in range(1, len(axes))]
    return {"self": cotangent.permute(0, 1, *inverse)}


@rule("cat")
def _cat(operation: Operation, cotangent: Tensor) -> Cotangents:
    axis = _axis(operation, operation["dim"])
    sizes = [tensor.shape[axis] for tensor in operation["tensors"]]
    return {"tensors": list(torch.split(cotangent, sizes, axis + 1))}


@rule("split", "split_with_sizes", "chunk")
def _split(operation: Operation, cotangents: Mapping[int, Tensor]) -> Cotangents:
    some = next(iter(cotangents.values()))
    whole = [
        cotangents[index] if index in cotangents else _zeros(some, part.shape[1:])
        for index, part in enumerate(operation.output)
    ]
    return {"self": torch.cat(whole, _axis(operation, operation["dim"]) + 1)}


@rule("slice")
def _slice(operation: Operation, cotangent: Tensor) -> Cotangents:
    axis = _axis(operation, operation["dim"])
    if operation["step"] != 1:
        raise unsupported(operation, f"its step is {operation['step']}")
    size = operation["self"].shape[axis]
    start = operation["start"] or 0
    start = max(start + size, 0) if start < 0 else min(start, size)
    after = size - start - operation.output.shape[axis]
    behind = cotangent.ndim - axis - 2
    return {"self": functional.pad(cotangent, (0, 0) * behind + (start, after))}


@rule("pad", "constant_pad_nd")
def _pad(operation: Operation, cotangent: Tensor) -> Cotangents:
    if operation.arguments.get("mode", "constant") != "constant":
        raise unsupported(operation, f"its mode is {operation['mode']}")
    return {"self": functional.pad(cotangent, [-width for width in operation["pad"]])}


def _axis(operation: Operation, axis: int) -> int:
    """Count an axis from the front; refuse that of the pictures."""
    value = operation.arguments.get("self")
    ndim = value.ndim if value is not None else operation.output.ndim
    axis = axis + ndim if axis < 0 else axis
    if axis == 0:
        raise unsupported(operation, "it works along the axis of the pictures")
    return axis


def _zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.zeros(*like.shape[:2], *shape, dtype=like.dtype)


# Linear layers and normalisation.


@rule("linear")
def _linear(operation: Operation, cotangent: Tensor) -> Cotangents:
    return {"input": cotangent @ operation["weight"]}


@rule("addmm")
def _addmm(operation: Operation, cotangent: Tensor) -> Cotangents:
    return {"mat1": cotangent @ operation["mat2"].T * operation["alpha"]}


_SLIDING = ("stride", "padding", "dilation")


@rule("conv2d")
def _conv2d(operation: Operation, cotangent: Tensor) -> Cotangents:
    x, weight = operation["input"], operation["weight"]
    if isinstance(operation["padding"], str):
        raise unsupported(operation, f"its padding is {operation['padding']!r}, not a number")
    stride, padding, dilation = map(_pair, (operation[n] for n in _SLIDING))
    # Rows and columns at the end that no window reached get a gradient of 0.
    unreached = [
        size - ((cells - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel - 1) + 1)
        for i, (size, cells, kernel) in enumerate(
            zip(_size(x), _size(operation.output), _size(weight), strict=True)
        )
    ]
    pulled = functional.conv_transpose2d(
        cotangent.flatten(0, 1),
        weight,
        stride=stride,
        padding=padding,
        output_padding=unreached,
        groups=operation["groups"],
        dilation=dilation,
    )
    return {"input": _with_classes(pulled, cotangent)}


@rule("_native_batch_norm_legit_no_training", "batch_norm")
def _batch_norm(operation: Operation, cotangent: Any) -> Cotangents:
    if operation.arguments.get("training"):
        raise unsupported(operation, "it normalises by the batch")
    cotangent = cotangent[0] if isinstance(cotangent, Mapping) else cotangent
    scale = (operation["running_var"] + operation["eps"]).rsqrt()
    if operation["weight"] is not None:
        scale = scale * operation["weight"]
    return {"input": cotangent * scale.reshape(-1, *[1] * (cotangent.ndim - 3))}


# Pooling.


@rule("mean")
def _mean(operation: Operation, cotangent: Tensor) -> Cotangents:
    x = operation["self"]
    if operation.arguments.get("dim") is None:
        raise unsupported(operation, "it takes the mean over the pictures")
    axes = sorted(_axis(operation, axis) for axis in operation["dim"])
    count = 1
    for axis in axes:
        count *= x.shape[axis]
        if not operation["keepdim"]:
            cotangent = cotangent.unsqueeze(axis + 1)
    return {"self": (cotangent / count).expand(*cotangent.shape[:2], *x.shape[1:])}


@rule("amax")
def _amax(operation: Operation, cotangent: Tensor) -> Cotangents:
    x, largest = operation["self"], operation.output
    if not operation["dim"]:
        raise unsupported(operation, "it takes the maximum over the pictures")
    axes = sorted(_axis(operation, axis) for axis in operation["dim"])
    if not operation["keepdim"]:
        for axis in axes:
            largest = largest.unsqueeze(axis)
            cotangent = cotangent.unsqueeze(axis + 1)
    # PyTorch shares this one out among equal maxima.
    first = (x == largest).to(cotangent.dtype)
    return {"self": cotangent * over_classes(first / first.sum(axes, keepdim=True))}


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
    end and the divisor. With P [cells, windows] the share of every cell in every
    window, y = P_rows^T x P_columns.
    """
    rows, columns = (
        torch.tensor(
            [
                [1 / count if start <= cell < end else 0.0 for start, end, count in windows]
                for cell in range(cells)
            ],
            dtype=cotangent.dtype,
        )
        for windows, cells in zip(shares, size, strict=True)
    )
    return rows @ cotangent @ columns.T


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
    first = values.argmax(2, keepdim=True) == torch.arange(len(offsets)).reshape(1, 1, -1, 1, 1)
    routed = cotangent.unsqueeze(3) * over_classes(first).to(cotangent.dtype)
    # A kernel that is 1 at one offset and 0 elsewhere puts its window's value there.
    kernels = torch.eye(len(offsets), dtype=cotangent.dtype).reshape(-1, 1, *kernel)
    placed = functional.conv_transpose2d(
        routed.flatten(0, 2), kernels, stride=stride, dilation=dilation
    )
    cropped = functional.pad(placed, [-width for width in borders]) if any(borders) else placed
    return {"self": cropped.reshape(*cotangent.shape[:3], *_size(x))}


SELECTING = frozenset({"amax", "max_pool2d"})
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


def _with_classes(tensor: Tensor, cotangent: Tensor) -> Tensor:
    """Give [N * K, ...] the axes of `cotangent`, [N, K, ...]."""
    return tensor.reshape(*cotangent.shape[:2], *tensor.shape[1:])
