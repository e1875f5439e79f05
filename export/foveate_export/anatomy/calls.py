"""Runs a network and notes every call of a module within it."""

import itertools
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_PRODUCTS = frozenset(
    {
        "matmul",
        "bmm",
        "baddbmm",
        "einsum",
        "scaled_dot_product_attention",
        "multi_head_attention_forward",
    }
)
"""The functions that can multiply activations with each other."""

_WINDOWS = frozenset(
    {
        "conv2d",
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "mean",
    }
)
"""The functions that go over the axes 2 and 3 as rows and columns."""


@dataclass(frozen=True)
class Call:
    """One call of one module within a forward pass.

    `began` and `ended` count the begins and ends of calls before its own.
    """

    path: str
    module: nn.Module
    input: Tensor | None
    output: Tensor | None
    began: int = 0
    ended: int = 0


@dataclass(frozen=True)
class Pass:
    """A forward pass.

    Attributes:
        logits: what the network returned.
        calls: every call of a module, in the order of return. A call whose first
            argument or whose result is not one tensor has None in that place.
        attention: the paths of the modules that multiply activations with each
            other in their own code, as attention does with queries and keys.
        windowed: the tensors that convolutions of more than one cell, poolings and
            means take or return over their axes 2 and 3, by their `id`.
    """

    logits: Tensor
    calls: list[Call]
    attention: frozenset[str]
    windowed: Mapping[int, Tensor]

    def within_attention(self, path: str) -> bool:
        """Return whether the module at `path` is a part of one of `attention`.

        The network itself does not count: all its modules are parts of it.
        """
        return any(path.startswith(f"{parent}.") for parent in self.attention if parent)


def run(module: nn.Module, image: Tensor) -> Pass:
    """Run `module` on `image`, float32 [N, C, H, W], and keep every call inside it.

    The tensors are references: what works in place on one of them later, such as
    `nn.ReLU(inplace=True)`, is seen in it.
    """
    calls: list[Call] = []
    operators = _Operators(module)
    times, began = itertools.count(), list[int]()

    def begin(path: str) -> Any:
        def hook(child: nn.Module, inputs: tuple[Any, ...]) -> None:
            began.append(next(times))
            operators.enter(path, child, inputs)

        return hook

    def end(path: str) -> Any:
        def hook(child: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            operators.leave()
            given = _tensor(inputs[0] if inputs else None)
            calls.append(Call(path, child, given, _tensor(output), began.pop(), next(times)))

        return hook

    with ExitStack() as hooks:
        for path, child in module.named_modules():
            if path:
                hooks.callback(child.register_forward_pre_hook(begin(path)).remove)
                hooks.callback(child.register_forward_hook(end(path)).remove)
        with torch.no_grad(), operators:
            logits = module(image)
    return Pass(logits, calls, frozenset(operators.attention), operators.windowed)


class _Operators(TorchFunctionMode):
    """Notes what a network does with its activations: see `Pass`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.attention: set[str] = set()
        self.windowed: dict[int, Tensor] = {}
        self._running = [""]
        self._weights = {_memory(weight) for weight in (*module.parameters(), *module.buffers())}

    def enter(self, path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note that a module begins."""
        # A module for nothing but the product of its inputs belongs to the one that calls it.
        factors = not any(module.children()) and len(_tensors(inputs)) > 1
        self._running.append(self._running[-1] if factors else path)

    def leave(self) -> None:
        """Note that the module that began last has ended."""
        self._running.pop()

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "").strip("_")
        given = _tensors([*args, *kwargs.values()])
        if name in _PRODUCTS:
            # A product of vectors, such as one with embeddings of the labels, has no tokens.
            factors = [each for each in given if each.ndim > 2]
            if sum(_memory(each) not in self._weights for each in factors) > 1:
                self.attention.add(self._running[-1])
        elif name in _WINDOWS and _has_windows(name, args, kwargs):
            taken = [given[0], *_tensors([result])]
            self.windowed |= {id(each): each for each in taken if each.ndim == 4}
        return result


def _has_windows(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function of `_WINDOWS` looks at more than one cell at once."""
    second = args[1] if len(args) > 1 else kwargs.get("weight", kwargs.get("dim"))
    if name == "conv2d":
        return isinstance(second, Tensor) and second.shape[2:].numel() > 1
    if name == "mean":
        axes = second if isinstance(second, tuple | list) else [second]
        return {axis % 4 for axis in axes if isinstance(axis, int)} == {2, 3}
    return True


def _tensor(value: object) -> Tensor | None:
    return value if isinstance(value, Tensor) else None


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among `values`, and among those of them that are lists."""
    flat = [
        each for value in values for each in (value if isinstance(value, list | tuple) else [value])
    ]
    return [value for value in flat if isinstance(value, Tensor)]


def _memory(tensor: Tensor) -> int:
    """Tell tensors apart by where their numbers are, which a view of a weight shares with it."""
    return tensor.untyped_storage().data_ptr()


def is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a 1x1 convolution that keeps the size: a linear layer at every cell."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.padding in ((0, 0), "valid", "same")
        and module.groups == 1
    )
