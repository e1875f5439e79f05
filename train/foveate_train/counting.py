"""Counts what a network holds and what one picture costs it.

    with torch.device("meta"):
        module = registry.create("torchvision:vgg16", weights="random:0").module
    count(module, (3, 224, 224)).operations

On the meta device tensors have shapes and no values, so that counting takes
neither memory nor arithmetic.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Count:
    """What was counted.

    Attributes:
        parameters: the numbers that training adjusts.
        statistics: the running means and variances of normalisations. Keras's
            published counts, and those of papers that follow it, hold them too.
        operations: the multiplications, each with its addition, of the
            convolutions, linear layers and attention on one input. Papers
            write them as MAC, mult-adds, or loosely as FLOPs.
    """

    parameters: int
    statistics: int
    operations: int


def count(module: nn.Module, shape: tuple[int, int, int]) -> Count:
    """Count a network's parameters, statistics and operations.

    Args:
        module: in evaluation mode, on any device; it runs once there.
        shape: the channels, height and width of its input.
    """
    device = next(module.parameters()).device
    # With gradients on, attention runs as the products that it consists of and
    # not as a fused kernel, whose operations are not counted.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *shape, device=device))
    return Count(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        statistics=sum(
            buffer.numel()
            for name, buffer in module.named_buffers()
            if name.endswith(("running_mean", "running_var"))
        ),
        operations=counter.get_total_flops() // 2,
    )


def depth(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the most convolutions and linear layers on a way from the input to the output.

    Args:
        module: in evaluation mode, best on the meta device: all that it computes is kept
            until it has run once.
        shape: the channels, height and width of its input.
    """
    device = next(module.parameters()).device
    with torch.no_grad(), _Depths() as depths:
        return int(depths.of(module(torch.zeros(1, *shape, device=device))))


class _Depths(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Follows through each operation how many layers with weights lie behind its tensors."""

    _DEEPENING = (
        torch.ops.aten.convolution.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.mm.default,
        torch.ops.aten.linear.default,
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # With the tensor itself, so that no other takes over its identity.
        self._depths: dict[int, tuple[torch.Tensor, int]] = {}

    def of(self, value: object) -> int:
        """Return the depth of the deepest tensor in a value."""
        found = (self._depths.get(id(tensor)) for tensor in _tensors(value))
        return max((each[1] for each in found if each is not None), default=0)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        reached = self.of((args, kwargs)) + (func in self._DEEPENING)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._depths[id(tensor)] = tensor, reached
        return result


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _tensors(each)
