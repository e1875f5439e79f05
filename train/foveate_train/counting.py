"""Counts what a network holds and what one picture costs it.

    with torch.device("meta"):
        module = registry.create("torchvision:vgg16", weights="random:0").module
    count(module, (3, 224, 224)).operations

On the meta device tensors have shapes and no values, so that counting takes
neither memory nor arithmetic.
"""

from dataclasses import dataclass

import torch
from torch import nn
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
    # not as a fused kernel whose operations nobody counts.
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
