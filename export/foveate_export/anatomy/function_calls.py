"""The functions that a network's forward pass calls: noted, and left out again.

A module, a function of torch and a method of a tensor all pass a
TorchFunctionMode, whatever the network looks like, and so do they while it is
traced.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from foveate_export.anatomy.ending import NORMALISERS, Normaliser

_LAST = 64
"""Enough for what follows the last layer; each call holds what it returned."""

_SYNONYMS = {"expit": "sigmoid", "logsigmoid": "log_sigmoid"}
_SHAPES = frozenset(
    {"view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous", "clone", "detach"}
    | {"getitem", "select", "permute", "transpose", "t"}
    | {"to", "float", "double", "half", "type", "dropout"}
)
"""What changes at most the shape or the type of numbers, or leaves some away."""
_EXTREMES = frozenset({"clamp", "clip", "hardtanh"})
_POOLING = frozenset(
    {"mean", "avg_pool2d", "adaptive_avg_pool2d", "amax", "max_pool2d", "adaptive_max_pool2d"}
)
_LINEAR = frozenset(
    {"linear", "addmm", "mm", "bmm", "matmul", "rmatmul", "einsum", "baddbmm", "bilinear"}
    | {"conv1d", "conv2d", "conv3d", "batch_norm", "layer_norm", "group_norm"}
)
_KEEPING_SIZE = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish"}
    | {"hardswish", "neg", "add", "radd", "sub", "rsub", "mul", "rmul", "div", "rdiv"}
    | {"truediv", "rtruediv", "cat", "stack", "sum"}
)
"""Functions whose values may have any size where all that they take may."""


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a function: the tensors it took, and the how manieth of its name it was."""

    name: str
    number: int
    inputs: tuple[Tensor, ...]
    output: object


@dataclass(frozen=True)
class Maker:
    """What computed the numbers of a tensor.

    Attributes:
        function: its name, "" where it is not known.
        plain: whether its values may have any size, as a linear layer's do.
        normaliser: what it is of `NORMALISERS`, if any.
        left_out: the calls, by name and number, without which the network returns
            what the normaliser took.
    """

    function: str
    plain: bool
    normaliser: Normaliser | None
    left_out: frozenset[tuple[str, int]]


class Calls(TorchFunctionMode):
    """Notes the last calls of a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[str] = Counter()
        self._last: deque[Call] = deque(maxlen=_LAST)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function and note it."""
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        name = _name(function)
        self._counts[name] += 1
        inputs = tuple(_tensors([*args, *kwargs.values()]))
        self._last.append(Call(name, self._counts[name], inputs, output))
        return output

    def maker(self, output: Tensor) -> Maker:
        """Return what computed an output, behind changes of its shape, type or extremes."""
        left_out: list[Call] = []
        value = output
        # From the last: a function that works in place returns what it was given.
        for call in reversed(self._last):
            if call.output is not value or not call.inputs:
                continue
            if call.name in _EXTREMES or (call.name == "log" and not _logarithms(left_out)):
                left_out.append(call)
            elif call.name not in _SHAPES:
                return self._made(output, call, left_out)
            value = call.inputs[0]
        return self._made(output, None, left_out)

    def _made(self, output: Tensor, call: Call | None, left_out: list[Call]) -> Maker:
        logarithm = _logarithms(left_out)
        normaliser = NORMALISERS.get(("log_" if logarithm else "") + (call.name if call else ""))
        named = [*logarithm, *([call] if call else [])]
        return Maker(
            function=named[0].name if named else "",
            plain=bool(named) and _is_plain(output, list(self._last)),
            normaliser=normaliser,
            left_out=frozenset((x.name, x.number) for x in [*left_out, *named[-1:]]),
        )


class Without(TorchFunctionMode):
    """Leaves out calls of a forward pass, by name and number: they return what they are given."""

    def __init__(self, left_out: frozenset[tuple[str, int]]) -> None:
        super().__init__()
        self._counts: Counter[str] = Counter()
        self._left_out = left_out

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function, unless it is one to leave out."""
        kwargs = kwargs or {}
        name = _name(function)
        self._counts[name] += 1
        if (name, self._counts[name]) in self._left_out:
            return args[0] if args else kwargs["input"]
        return function(*args, **kwargs)


def _name(function: Callable[..., Any]) -> str:
    """Return one name for a function, a method, its form in place and that of an operator."""
    name = getattr(function, "__name__", "").strip("_").removeprefix("special_")
    return _SYNONYMS.get(name, name)


def _logarithms(calls: Sequence[Call]) -> list[Call]:
    return [call for call in calls if call.name == "log"]


def _is_plain(output: Tensor, calls: Sequence[Call]) -> bool:
    for position in reversed(range(len(calls))):
        call = calls[position]
        if call.output is not output or not call.inputs:
            continue
        if call.name in _LINEAR:
            return True
        if call.name in _SHAPES | _POOLING:
            return _is_plain(call.inputs[0], calls[:position])
        return call.name in _KEEPING_SIZE and all(
            _is_plain(given, calls[:position]) for given in call.inputs
        )
    # A weight, the picture, or what lies far before the end.
    return True


def _tensors(values: Sequence[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
