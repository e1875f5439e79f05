"""MobileNet (Howard et al., 2017)."""

import torch
from torch import nn

from foveate_train.networks.imagenet import IMAGENET_INPUT, Classes, labels
from foveate_train.networks.layers import ConvBNReLU
from foveate_train.registry import Blueprint, register

# Table 1 of the paper: the output channels and the stride of each block. The
# table gives the last block a stride of 2, and yet the same size of map before
# and after it.
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


class DepthwiseSeparable(nn.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution across them.

    For D channels it costs 1 / D + 1 / 9 of what a 3x3 convolution costs.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = ConvBNReLU(inputs, inputs, stride=stride, groups=inputs)
        self.pointwise = ConvBNReLU(inputs, outputs, size=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return [N, outputs, H / stride, W / stride]."""
        result: torch.Tensor = self.pointwise(self.depthwise(maps))
        return result


class MobileNet(nn.Module):
    """The MobileNet of width 1 (table 1 of the paper): 4,231,976 parameters.

    With the running means and variances of its normalisations it holds
    4,253,864 numbers, the count that Keras publishes. Maps float32
    [N, 3, 224, 224] to logits [N, num_classes].

        layer      output
        conv1      32 x 112 x 112
        blocks     64 x 112 x 112, 128 x 56 x 56 twice, 256 x 28 x 28 twice,
                   512 x 14 x 14 six times, 1024 x 7 x 7 twice
        avgpool    1024
        fc         num_classes
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = ConvBNReLU(3, 32, stride=2)
        self.blocks = nn.Sequential()
        channels = 32
        for outputs, stride in _BLOCKS:
            self.blocks.append(DepthwiseSeparable(channels, outputs, stride))
            channels = outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        maps = self.blocks(self.conv1(images))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(maps), 1))
        return logits


@register("mobilenet")
def mobilenet(*, num_classes: Classes = 1000) -> Blueprint:
    """Build MobileNet for ImageNet."""
    return Blueprint(MobileNet(num_classes), IMAGENET_INPUT, labels(num_classes))
