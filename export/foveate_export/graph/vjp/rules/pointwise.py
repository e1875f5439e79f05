"""Functions of one value, and arithmetic on two."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from foveate_export.graph.vjp.operation import Operation
from foveate_export.graph.vjp.rules.base import Cotangents, rule, summed_to, unsupported


def _silu(x: Tensor) -> Tensor:
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))


def _mish(x: Tensor) -> Tensor:
    slope = functional.softplus(x).tanh()
    return slope + x * x.sigmoid() * (1 - slope * slope)


_BY_INPUT: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu6": lambda x: (x > 0) & (x < 6),
    "hardsigmoid": lambda x: ((x > -3) & (x < 3)) / 6,
    "hardswish": lambda x: torch.where(x < 3, (x / 3 + 0.5) * (x > -3), 1.0),
    "silu": _silu,
    "mish": _mish,
    "neg": lambda x: -torch.ones_like(x),
    "abs": torch.sign,
    "square": lambda x: 2 * x,
    "log": torch.reciprocal,
    "log1p": lambda x: 1 / (1 + x),
    "sin": torch.cos,
    "cos": lambda x: -x.sin(),
    "erf": lambda x: 2 / math.sqrt(math.pi) * (-x * x).exp(),
    "detach": torch.zeros_like,
}

_BY_OUTPUT: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda y: y > 0,
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
    "exp": lambda y: y,
    "expm1": lambda y: y + 1,
    "sqrt": lambda y: 0.5 / y,
    "rsqrt": lambda y: -0.5 * y * y * y,
    "reciprocal": lambda y: -y * y,
}

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


@rule(*_BY_INPUT)
def _by_input(operation: Operation, cotangent: Tensor) -> Cotangents:
    return _scaled(cotangent, _BY_INPUT[operation.name](operation["self"]))


@rule(*_BY_OUTPUT)
def _by_output(operation: Operation, cotangent: Tensor) -> Cotangents:
    return _scaled(cotangent, _BY_OUTPUT[operation.name](operation.output))


@rule("gelu")
def _gelu(operation: Operation, cotangent: Tensor) -> Cotangents:
    x = operation["self"]
    if operation["approximate"] == "tanh":
        # y = x (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3)
        factor = math.sqrt(2 / math.pi)
        bent = (factor * (x + 0.044715 * x * x * x)).tanh()
        slope = factor * (1 + 3 * 0.044715 * x * x)
        return _scaled(cotangent, 0.5 * (1 + bent + x * (1 - bent * bent) * slope))
    share = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return _scaled(cotangent, share + x * (-0.5 * x * x).exp() / math.sqrt(2 * math.pi))


@rule("leaky_relu")
def _leaky_relu(operation: Operation, cotangent: Tensor) -> Cotangents:
    derivative = torch.where(operation["self"] > 0, 1.0, operation["negative_slope"])
    return _scaled(cotangent, derivative)


@rule("prelu")
def _prelu(operation: Operation, cotangent: Tensor) -> Cotangents:
    x, slope = operation["self"], operation["weight"]
    if slope.numel() > 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return _scaled(cotangent, torch.where(x > 0, torch.ones_like(slope), slope))


@rule("hardtanh")
def _hardtanh(operation: Operation, cotangent: Tensor) -> Cotangents:
    x = operation["self"]
    return _scaled(cotangent, (x > operation["min_val"]) & (x < operation["max_val"]))


@rule("clamp", "clamp_min", "clamp_max")
def _clamp(operation: Operation, cotangent: Tensor) -> Cotangents:
    x = operation["self"]
    inside = torch.ones_like(x, dtype=torch.bool)
    if operation.arguments.get("min") is not None:
        inside = inside & (x >= operation["min"])
    if operation.arguments.get("max") is not None:
        inside = inside & (x <= operation["max"])
    return _scaled(cotangent, inside)


@rule("elu")
def _elu(operation: Operation, cotangent: Tensor) -> Cotangents:
    scale = operation["scale"]
    below = operation["input_scale"] * (operation.output + operation["alpha"] * scale)
    return _scaled(cotangent, torch.where(operation["self"] > 0, scale, below))


@rule("selu")
def _selu(operation: Operation, cotangent: Tensor) -> Cotangents:
    below = operation.output + _SELU_SCALE * _SELU_ALPHA
    return _scaled(cotangent, torch.where(operation["self"] > 0, _SELU_SCALE, below))


@rule("softplus")
def _softplus(operation: Operation, cotangent: Tensor) -> Cotangents:
    scaled = operation["self"] * operation["beta"]
    linear = scaled > operation["threshold"]
    return _scaled(cotangent, torch.where(linear, 1.0, scaled.sigmoid()))


@rule("pow")
def _pow(operation: Operation, cotangent: Tensor) -> Cotangents:
    x, exponent = operation["self"], operation["exponent"]
    if not isinstance(x, Tensor):
        raise unsupported(operation, "its base is a number")
    return {"self": summed_to(cotangent * (exponent * x ** (exponent - 1)), x)}


def _scaled(cotangent: Tensor, derivative: Tensor) -> Cotangents:
    return {"self": cotangent * derivative.to(cotangent.dtype)}


# Arithmetic. An input may be broadcast to the output's shape.


@rule("add", "sub")
def _add(operation: Operation, cotangent: Tensor) -> Cotangents:
    factor = operation["alpha"] * (-1 if operation.name == "sub" else 1)
    other = cotangent if factor == 1 else cotangent * factor
    return _each(operation, {"self": cotangent, "other": other})


@rule("rsub")
def _rsub(operation: Operation, cotangent: Tensor) -> Cotangents:
    return _each(operation, {"self": -operation["alpha"] * cotangent, "other": cotangent})


@rule("mul")
def _mul(operation: Operation, cotangent: Tensor) -> Cotangents:
    left, right = operation["self"], operation["other"]
    return _each(operation, {"self": cotangent * right, "other": cotangent * left})


@rule("div")
def _div(operation: Operation, cotangent: Tensor) -> Cotangents:
    if operation.arguments.get("rounding_mode") is not None:
        raise unsupported(operation, "it rounds")
    shared = cotangent / operation["other"]
    return _each(operation, {"self": shared, "other": -shared * operation.output})


@rule("where")
def _where(operation: Operation, cotangent: Tensor) -> Cotangents:
    chosen = operation["condition"].to(cotangent.dtype)
    return _each(operation, {"self": cotangent * chosen, "other": cotangent * (1 - chosen)})


@rule("maximum", "minimum")
def _maximum(operation: Operation, cotangent: Tensor) -> Cotangents:
    left, right = operation["self"], operation["other"]
    larger = left > right if operation.name == "maximum" else left < right
    # PyTorch shares this one out between equal values.
    share = larger.to(cotangent.dtype) + 0.5 * (left == right).to(cotangent.dtype)
    return _each(operation, {"self": cotangent * share, "other": cotangent * (1 - share)})


def _each(operation: Operation, cotangents: dict[str, Any]) -> Cotangents:
    return {
        name: summed_to(cotangent, operation[name])
        for name, cotangent in cotangents.items()
        if isinstance(operation[name], Tensor)
    }
