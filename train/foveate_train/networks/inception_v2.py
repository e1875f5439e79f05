"""Inception V2, also BN-Inception (Ioffe & Szegedy, Batch normalization, 2015)."""

from dataclasses import dataclass

import torch
from torch import nn

from foveate_train.networks.imagenet import IMAGENET_INPUT, Classes, labels
from foveate_train.networks.layers import ConvBNReLU
from foveate_train.registry import Blueprint, register


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The channels of one module, a row of the paper's figure 5.

    `reduce3` and `reduce5` come before `conv3` and the pair of `conv5`; `pool`
    is those of the projection after pooling. A module without `conv1` and
    `pool` has stride 2 and passes the pooled maps through.
    """

    conv1: int = 0
    reduce3: int
    conv3: int
    reduce5: int
    conv5: int
    pool: int = 0
    kind: str = "average"

    @property
    def outputs(self) -> int:
        """The channels that the four branches make, pooled maps passed through aside."""
        return self.conv1 + self.conv3 + self.conv5 + self.pool


_MODULES = {
    "3a": Widths(conv1=64, reduce3=64, conv3=64, reduce5=64, conv5=96, pool=32),
    "3b": Widths(conv1=64, reduce3=64, conv3=96, reduce5=64, conv5=96, pool=64),
    "3c": Widths(reduce3=128, conv3=160, reduce5=64, conv5=96),
    "4a": Widths(conv1=224, reduce3=64, conv3=96, reduce5=96, conv5=128, pool=128),
    "4b": Widths(conv1=192, reduce3=96, conv3=128, reduce5=96, conv5=128, pool=128),
    "4c": Widths(conv1=160, reduce3=128, conv3=160, reduce5=128, conv5=160, pool=96),
    "4d": Widths(conv1=96, reduce3=128, conv3=192, reduce5=160, conv5=192, pool=96),
    "4e": Widths(reduce3=128, conv3=192, reduce5=192, conv5=256),
    "5a": Widths(conv1=352, reduce3=192, conv3=320, reduce5=160, conv5=224, pool=128),
    "5b": Widths(conv1=352, reduce3=192, conv3=320, reduce5=192, conv5=224, pool=128, kind="max"),
}


class Inception(nn.Module):
    """Four branches side by side: 1x1, 3x3, two 3x3 in place of V1's 5x5, and pooling.

    Maps [N, inputs, H, W] to [N, outputs, H, W], or to half the height and
    width where the module has stride 2.
    """

    def __init__(self, inputs: int, widths: Widths) -> None:
        super().__init__()
        stride = 1 if widths.pool else 2
        self.outputs = widths.outputs + (0 if widths.pool else inputs)
        self.branch1 = ConvBNReLU(inputs, widths.conv1, 1) if widths.conv1 else None
        self.branch3 = nn.Sequential(
            ConvBNReLU(inputs, widths.reduce3, 1),
            ConvBNReLU(widths.reduce3, widths.conv3, stride=stride),
        )
        self.branch5 = nn.Sequential(
            ConvBNReLU(inputs, widths.reduce5, 1),
            ConvBNReLU(widths.reduce5, widths.conv5),
            ConvBNReLU(widths.conv5, widths.conv5, stride=stride),
        )
        if stride == 2 or widths.kind == "max":
            pool: nn.Module = nn.MaxPool2d(3, stride, padding=1)
        else:
            pool = nn.AvgPool2d(3, stride, padding=1)
        self.pool = nn.Sequential(pool)
        if widths.pool:
            self.pool.append(ConvBNReLU(inputs, widths.pool, 1))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the maps of all branches, one after another."""
        first = [] if self.branch1 is None else [self.branch1(maps)]
        return torch.cat([*first, self.branch3(maps), self.branch5(maps), self.pool(maps)], 1)


class InceptionV2(nn.Module):
    """Inception V1 with batch normalisation and pairs of 3x3 kernels for 5x5 ones.

    As in the paper's figure 5, without the auxiliary heads of its training and
    with a plain first convolution. Maps float32 [N, 3, 224, 224] to logits
    [N, num_classes].

        layer            output
        conv1, pool1     64 x 56 x 56
        conv2, pool2     192 x 28 x 28
        inception3a, b   256 x 28 x 28, 320 x 28 x 28
        inception3c      576 x 14 x 14
        inception4a-d    576 x 14 x 14
        inception4e      1024 x 7 x 7
        inception5a, b   1024 x 7 x 7
        avgpool          1024
        fc               num_classes
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = ConvBNReLU(3, 64, 7, stride=2)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(ConvBNReLU(64, 64, 1), ConvBNReLU(64, 192))
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.inception = nn.Sequential()
        channels = 192
        for name, widths in _MODULES.items():
            module = Inception(channels, widths)
            self.inception.add_module(name, module)
            channels = module.outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        maps = self.pool2(self.conv2(self.pool1(self.conv1(images))))
        maps = self.inception(maps)
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(maps), 1))
        return logits


@register("inception_v2")
def inception_v2(*, num_classes: Classes = 1000) -> Blueprint:
    """Build Inception V2 for ImageNet."""
    return Blueprint(InceptionV2(num_classes), IMAGENET_INPUT, labels(num_classes))
