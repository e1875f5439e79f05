"""LeNet-5 (LeCun et al., Gradient-based learning applied to document recognition, 1998)."""

import torch
from torch import nn

from foveate_train.networks.digits import DIGITS, MNIST_INPUT
from foveate_train.registry import Blueprint, register


class LeNet5(nn.Module):
    """LeNet-5 with a dense C3: 61,706 parameters.

    Every map of C3 sees all six maps of S2, where the paper's sees a chosen
    subset; the subsampling layers are plain averages without parameters; and
    the output is a linear layer in place of radial basis functions. The layers
    have the paper's names. Maps float32 [N, 1, 28, 28] to logits [N, 10].
    """

    def __init__(self) -> None:
        super().__init__()
        # Padding by 2 gives the paper's 32 x 32 input.
        self.c1 = nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh())
        self.s2 = nn.AvgPool2d(2)
        self.c3 = nn.Sequential(nn.Conv2d(6, 16, 5), nn.Tanh())
        self.s4 = nn.AvgPool2d(2)
        self.c5 = nn.Sequential(nn.Linear(16 * 5 * 5, 120), nn.Tanh())
        self.f6 = nn.Sequential(nn.Linear(120, 84), nn.Tanh())
        self.output = nn.Linear(84, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        maps = self.s4(self.c3(self.s2(self.c1(images))))
        logits: torch.Tensor = self.output(self.f6(self.c5(torch.flatten(maps, 1))))
        return logits


@register("lenet5")
def lenet5() -> Blueprint:
    """Build LeNet-5 for MNIST."""
    return Blueprint(LeNet5(), MNIST_INPUT, DIGITS)
