"""ONNX operators as calls of torch.

Each function takes the operator's inputs in their order, None for one that is
left out, and its attributes by their ONNX names. The semantics are those of
opsets 13 to 23, as https://onnx.ai/onnx/operators has them. There are those
operators that the exporter writes, and their close relatives.
"""

from collections.abc import Callable, Sequence
from functools import reduce, wraps
from types import MappingProxyType

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn import functional

Result = Tensor | tuple[Tensor, ...]
Operator = Callable[..., Result]


def _widened(call: Callable[..., Tensor]) -> Operator:
    """Multiply halves in float32 on a CPU, and round the sums.

    As processors of halves do, which torch imitates at a tenth to a fiftieth of the speed.
    """

    @wraps(call)
    def run(*tensors: Tensor | None, **attributes: object) -> Tensor:
        first = tensors[0]
        if first is None or first.dtype != torch.float16 or first.device.type != "cpu":
            return call(*tensors, **attributes)
        return call(*(None if t is None else t.float() for t in tensors), **attributes).half()

    return run


def _dtype(code: int) -> torch.dtype:
    """Return the type that ONNX gives a number."""
    if code == TensorProto.BFLOAT16:
        return torch.bfloat16
    return torch.from_numpy(np.empty(0, dtype=helper.tensor_dtype_to_np_dtype(code))).dtype


def _broadcast_last(values: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """Give a vector along `axis` of `tensor` the dimensions to be broadcast with it."""
    if values.ndim == 0:
        return values
    shape = [1] * tensor.ndim
    shape[axis] = -1
    return values.reshape(shape)


# Arithmetic, element by element


def _div(a: Tensor, b: Tensor) -> Tensor:
    rounding = None if a.is_floating_point() else "trunc"
    return torch.div(a, b, rounding_mode=rounding)


def _pow(x: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(x, exponent).to(x.dtype)


def _max(*tensors: Tensor) -> Tensor:
    return reduce(torch.maximum, tensors)


def _min(*tensors: Tensor) -> Tensor:
    return reduce(torch.minimum, tensors)


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high)


def _cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    del saturate  # for the 8-bit floats alone
    return x.to(_dtype(to))


def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu(x, alpha)


def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.elu(x, alpha)


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return functional.gelu(x, approximate=approximate)


def _log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


def _softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


# Shapes and places


def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


def _reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    wanted = [
        x.shape[place] if size == 0 and not allowzero else size
        for place, size in enumerate(shape.tolist())
    ]
    return x.reshape(wanted)


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(*(reversed(range(x.ndim)) if perm is None else perm))


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes.tolist())


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _concat(*tensors: Tensor, axis: int) -> Tensor:
    return torch.cat(tensors, axis)


def _split(
    x: Tensor, split: Tensor | None = None, *, axis: int = 0, num_outputs: int = 0
) -> tuple[Tensor, ...]:
    size = -(-x.shape[axis] // num_outputs) if split is None else split.tolist()
    return torch.split(x, size, axis)


def _slice(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    places = range(starts.numel()) if axes is None else axes.tolist()
    strides = [1] * starts.numel() if steps is None else steps.tolist()
    for axis, start, end, step in zip(places, starts.tolist(), ends.tolist(), strides, strict=True):
        # Python's own rules are those of ONNX, for steps back as well.
        chosen = range(x.shape[axis])[slice(start, end, step)]
        x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64, device=x.device))
    return x


def _gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    size = x.shape[axis]
    flat = torch.where(indices < 0, indices + size, indices).reshape(-1)
    before, after = x.shape[: axis % x.ndim], x.shape[axis % x.ndim + 1 :]
    return x.index_select(axis, flat).reshape(*before, *indices.shape, *after)


def _gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    batch = x.shape[:batch_dims]
    count = int(np.prod(batch))
    inner = indices.reshape(count, -1, indices.shape[-1])
    rows = torch.arange(count, device=x.device)[:, None].expand(inner.shape[:2])
    places = (rows, *inner.unbind(-1))
    found = x.reshape(count, *x.shape[batch_dims:])[places]
    return found.reshape(*indices.shape[:-1], *x.shape[batch_dims + indices.shape[-1] :])


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(x.shape, shape.tolist()))


def _pad(
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    if mode != "constant":
        raise NotImplementedError(f"Pad in the mode {mode}")
    sizes = pads.tolist()
    half = len(sizes) // 2
    amounts = [[0, 0] for _ in range(x.ndim)]
    for place, axis in enumerate(range(x.ndim) if axes is None else axes.tolist()):
        amounts[axis] = [sizes[place], sizes[place + half]]
    flat = [amount for pair in reversed(amounts) for amount in pair]
    return functional.pad(x, flat, value=0 if value is None else value.item())


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(
        start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device
    )


def _constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    sizes = shape.tolist()
    if value is None:
        return torch.zeros(sizes, device=shape.device)
    return value.to(shape.device).reshape(()).expand(sizes)


# Networks


def _spatial(
    x: Tensor, pads: Sequence[int] | None, auto_pad: str, fill: float
) -> tuple[Tensor, list[int]]:
    """Return `x` with what torch cannot pad by itself, and the padding that is left to it."""
    if auto_pad not in {"NOTSET", "VALID"}:
        raise NotImplementedError(f"auto_pad {auto_pad}")
    sizes = list(pads or [0] * 2 * (x.ndim - 2))
    begins, ends = sizes[: x.ndim - 2], sizes[x.ndim - 2 :]
    if begins == ends:
        return x, begins
    flat = [side for pair in zip(reversed(begins), reversed(ends), strict=True) for side in pair]
    return functional.pad(x, flat, value=fill), [0] * len(begins)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    del kernel_shape  # the weight has it
    x, padding = _spatial(x, pads, auto_pad, 0.0)
    ones = [1] * (x.ndim - 2)
    call = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[x.ndim - 2]
    return call(x, weight, bias, list(strides or ones), padding, list(dilations or ones), group)


def _max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Tensor:
    del storage_order  # of the second output, which is not used
    x, padding = _spatial(x, pads, auto_pad, float("-inf"))
    ones = [1] * (x.ndim - 2)
    return functional.max_pool2d(
        x,
        list(kernel_shape),
        list(strides or ones),
        padding,
        list(dilations or ones),
        ceil_mode=bool(ceil_mode),
    )


def _average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    sizes = list(pads or [0] * 2 * (x.ndim - 2))
    if sizes[: x.ndim - 2] != sizes[x.ndim - 2 :] or any(d != 1 for d in dilations or ()):
        raise NotImplementedError("AveragePool with uneven padding or dilation")
    x, padding = _spatial(x, pads, auto_pad, 0.0)
    return functional.avg_pool2d(
        x,
        list(kernel_shape),
        list(strides or [1] * (x.ndim - 2)),
        padding,
        ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad),
    )


def _global_average_pool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 - ONNX's name
    transB: int = 0,  # noqa: N803 - ONNX's name
) -> Tensor:
    product = (a.T if transA else a) @ (b.T if transB else b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


def _batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    del momentum  # of training
    if training_mode:
        raise NotImplementedError("BatchNormalization in training")
    return functional.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def _layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    del stash_type  # torch takes float32 for its sums as well
    return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def _lrn(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    return functional.local_response_norm(x, size, alpha, beta, bias)


def _reduction(call: Callable[..., Tensor]) -> Operator:
    def run(
        x: Tensor,
        axes: Tensor | Sequence[int] | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        # An input since opset 18, an attribute before.
        chosen = axes.tolist() if isinstance(axes, Tensor) else list(axes or ())
        if not chosen and noop_with_empty_axes:
            return x
        return call(x, chosen or list(range(x.ndim)), keepdim=bool(keepdims))

    return run


def _arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        raise NotImplementedError("ArgMax of the last index")
    # Of equal values torch takes any; sorted stably the first one leads.
    order = torch.sort(x, dim=axis, descending=True, stable=True).indices.narrow(axis, 0, 1)
    return order if keepdims else order.squeeze(axis)


def _top_k(
    x: Tensor,
    k: Tensor,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,  # noqa: A002 - ONNX's name
) -> tuple[Tensor, Tensor]:
    del sorted  # sorted is one of the orders that "any" allows
    # Of equal values ONNX takes the lower index first; torch.topk takes any.
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    count = int(k.item())
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


def _quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    saturate: int = 1,
) -> Tensor:
    del saturate  # for the 8-bit floats alone
    kind = torch.uint8 if zero_point is None else zero_point.dtype
    zero = torch.zeros((), device=x.device) if zero_point is None else zero_point.to(scale.dtype)
    steps = torch.round(x / _broadcast_last(scale, x, axis)) + _broadcast_last(zero, x, axis)
    limits = torch.iinfo(kind)
    return steps.clamp(limits.min, limits.max).to(kind)


def _dequantize_linear(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1
) -> Tensor:
    steps = x.to(scale.dtype)
    if zero_point is not None:
        steps = steps - _broadcast_last(zero_point.to(scale.dtype), x, axis)
    return steps * _broadcast_last(scale, x, axis)


def _identity(x: Tensor) -> Tensor:
    return x


OPERATORS: MappingProxyType[str, Operator] = MappingProxyType(
    {
        "Abs": torch.abs,
        "Add": torch.add,
        "And": torch.logical_and,
        "ArgMax": _arg_max,
        "AveragePool": _average_pool,
        "BatchNormalization": _batch_normalization,
        "Cast": _cast,
        "Ceil": torch.ceil,
        "Clip": _clip,
        "Concat": _concat,
        "ConstantOfShape": _constant_of_shape,
        "Conv": _widened(_conv),
        "DequantizeLinear": _dequantize_linear,
        "Div": _div,
        "Elu": _elu,
        "Equal": torch.eq,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Expand": _expand,
        "Flatten": _flatten,
        "Floor": torch.floor,
        "Gather": _gather,
        "GatherElements": _gather_elements,
        "GatherND": _gather_nd,
        "Gelu": _gelu,
        "Gemm": _widened(_gemm),
        "GlobalAveragePool": _global_average_pool,
        "Greater": torch.gt,
        "GreaterOrEqual": torch.ge,
        "HardSigmoid": _hard_sigmoid,
        "HardSwish": functional.hardswish,
        "Identity": _identity,
        "LRN": _lrn,
        "LayerNormalization": _layer_normalization,
        "LeakyRelu": _leaky_relu,
        "Less": torch.lt,
        "LessOrEqual": torch.le,
        "Log": torch.log,
        "LogSoftmax": _log_softmax,
        "MatMul": _widened(torch.matmul),
        "Max": _max,
        "MaxPool": _max_pool,
        "Min": _min,
        "Mul": torch.mul,
        "Neg": torch.neg,
        "Not": torch.logical_not,
        "Or": torch.logical_or,
        "Pad": _pad,
        "Pow": _pow,
        "QuantizeLinear": _quantize_linear,
        "Range": _range,
        "Reciprocal": torch.reciprocal,
        "ReduceLogSumExp": _reduction(torch.logsumexp),
        "ReduceMax": _reduction(torch.amax),
        "ReduceMean": _reduction(torch.mean),
        "ReduceMin": _reduction(torch.amin),
        "ReduceSum": _reduction(torch.sum),
        "Relu": torch.relu,
        "Reshape": _reshape,
        "Shape": _shape,
        "Sigmoid": torch.sigmoid,
        "Slice": _slice,
        "Softmax": _softmax,
        "Split": _split,
        "Sqrt": torch.sqrt,
        "Squeeze": _squeeze,
        "Sub": torch.sub,
        "Tanh": torch.tanh,
        "TopK": _top_k,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
        "Where": torch.where,
    }
)
"""The operators, by their names in ONNX's own domain."""
