"""A deep residual network for MNIST, and its twin without the shortcuts."""

from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from foveate_train.networks.digits import DIGITS, MNIST_INPUT
from foveate_train.networks.layers import ConvBNReLU
from foveate_train.registry import Blueprint, register

_CHANNELS = 32


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to their input.

    The basic block of He et al., Deep residual learning for image recognition,
    2015, figure 2; without the shortcut, two plain layers of the same weights.
    """

    def __init__(self, *, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_CHANNELS)
        self.conv2 = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(_CHANNELS)
        self.shortcut = shortcut

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps of the same shape, [N, 32, H, W]."""
        residual = functional.relu(self.bn1(self.conv1(maps)))
        residual = self.bn2(self.conv2(residual))
        return functional.relu(maps + residual if self.shortcut else residual)


class Residual42(nn.Module):
    """A convolution, 40 residual blocks of 32 channels, and a linear layer: 42 stages.

    Nothing is pooled before the global average that the linear layer reads.
    Maps float32 [N, 1, 28, 28] to logits [N, 10].
    """

    def __init__(self, *, shortcut: bool, blocks: int) -> None:
        super().__init__()
        self.stem = ConvBNReLU(MNIST_INPUT.channels, _CHANNELS)
        self.blocks = nn.Sequential(*(ResidualBlock(shortcut=shortcut) for _ in range(blocks)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(_CHANNELS, len(DIGITS))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        maps = self.blocks(self.stem(images))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(maps), 1))
        return logits


@register("residual42")
def residual42(
    *, shortcut: bool = True, blocks: Annotated[int, Field(ge=1, le=1000)] = 40
) -> Blueprint:
    """Build the residual network; `shortcut=False` is its plain twin."""
    return Blueprint(Residual42(shortcut=shortcut, blocks=blocks), MNIST_INPUT, DIGITS)
