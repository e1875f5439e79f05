"""Four convolutions with batch normalisation, small enough to look inside."""

import torch
from torch import nn

from foveate_train.networks.digits import DIGITS, MNIST_INPUT
from foveate_train.networks.layers import ConvBNReLU
from foveate_train.registry import Blueprint, register


class ConvNet4(nn.Module):
    """Four 3x3 ConvBNReLU layers, global average pooling and a linear layer.

    `layer1` to `layer4` have 32, 64, 128 and 128 channels. With `pool` the
    maps are halved by max-pooling after the first and the second, which leaves
    7 x 7 for the last; without, all stay at 28 x 28, for about ten times the
    work. Maps float32 [N, 1, 28, 28] to logits [N, 10].
    """

    def __init__(self, *, pool: bool) -> None:
        super().__init__()
        self.layer1 = ConvBNReLU(1, 32)
        self.pool1 = nn.MaxPool2d(2) if pool else nn.Identity()
        self.layer2 = ConvBNReLU(32, 64)
        self.pool2 = nn.MaxPool2d(2) if pool else nn.Identity()
        self.layer3 = ConvBNReLU(64, 128)
        self.layer4 = ConvBNReLU(128, 128)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        maps = self.pool1(self.layer1(images))
        maps = self.pool2(self.layer2(maps))
        maps = self.layer4(self.layer3(maps))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(maps), 1))
        return logits


@register("convnet4")
def convnet4(*, pool: bool = True) -> Blueprint:
    """Build the four-layer network for MNIST; `pool=False` is the literal one."""
    return Blueprint(ConvNet4(pool=pool), MNIST_INPUT, DIGITS)
