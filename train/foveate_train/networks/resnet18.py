"""ResNet-18 (He et al., Deep residual learning for image recognition, 2015).

The names of the layers are torchvision's, so that its weights load.
"""

import torch
from torch import nn

from foveate_train.networks.imagenet import IMAGENET_INPUT, Classes, labels
from foveate_train.registry import Blueprint, register


class BasicBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to their input.

    Where the block halves the maps and doubles the channels, the input goes
    through a 1x1 convolution of the same stride (option B of the paper) so
    that the two can be added.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return [N, outputs, H / stride, W / stride]."""
        residual = self.relu(self.bn1(self.conv1(maps)))
        residual = self.bn2(self.conv2(residual))
        shortcut = maps if self.downsample is None else self.downsample(maps)
        result: torch.Tensor = self.relu(shortcut + residual)
        return result


class ResNet18(nn.Module):
    """The residual network of 18 layers (table 1 of the paper): 11,689,512 parameters.

    Maps float32 [N, 3, 224, 224] to logits [N, num_classes].

        layer    blocks              output
        conv1    7x7 / 2             64 x 112 x 112
        maxpool  3x3 / 2             64 x 56 x 56
        layer1   2                   64 x 56 x 56
        layer2   2, the first / 2    128 x 28 x 28
        layer3   2, the first / 2    256 x 14 x 14
        layer4   2, the first / 2    512 x 7 x 7
        avgpool                      512
        fc                           num_classes
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He et al., Delving deep into rectifiers, 2015.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(maps), 1))
        return logits


@register("resnet18")
def resnet18(*, num_classes: Classes = 1000) -> Blueprint:
    """Build ResNet-18 for ImageNet; torchvision's file of weights fits it."""
    return Blueprint(ResNet18(num_classes), IMAGENET_INPUT, labels(num_classes))
