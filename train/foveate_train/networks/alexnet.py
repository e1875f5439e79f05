"""AlexNet as it was published, with local response normalisation and two groups."""

from typing import cast

import torch
from torch import nn

from foveate_train.networks.imagenet import IMAGENET_INPUT, Classes, labels
from foveate_train.registry import Blueprint, register

# 227 pixels make the 55 x 55 maps of the paper, whose text says 224.
_INPUT = IMAGENET_INPUT.changed(height=227, width=227)


class AlexNet(nn.Module):
    """AlexNet (Krizhevsky et al., 2012): 60,965,224 parameters.

    The second, fourth and fifth convolutions see only half of the channels
    each, as their halves lay on two GPUs. Maps float32 [N, 3, 227, 227] to
    logits [N, num_classes].

        layer   kernel       output
        conv1   11x11 / 4    96 x 55 x 55    response normalisation
        pool1   3x3 / 2      96 x 27 x 27
        conv2   5x5          256 x 27 x 27   two groups, response normalisation
        pool2   3x3 / 2      256 x 13 x 13
        conv3   3x3          384 x 13 x 13
        conv4   3x3          384 x 13 x 13   two groups
        conv5   3x3          256 x 13 x 13   two groups
        pool5   3x3 / 2      256 x 6 x 6
        fc6     dropout 0.5  4096
        fc7     dropout 0.5  4096
        fc8                  num_classes
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 96, 11, stride=4), nn.ReLU())
        self.norm1 = response_normalisation()
        self.pool1 = nn.MaxPool2d(3, stride=2)
        self.conv2 = nn.Sequential(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU())
        self.norm2 = response_normalisation()
        self.pool2 = nn.MaxPool2d(3, stride=2)
        self.conv3 = nn.Sequential(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU())
        self.conv4 = nn.Sequential(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU())
        self.conv5 = nn.Sequential(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU())
        self.pool5 = nn.MaxPool2d(3, stride=2)
        self.fc6 = nn.Sequential(nn.Dropout(0.5), nn.Linear(256 * 6 * 6, 4096), nn.ReLU())
        self.fc7 = nn.Sequential(nn.Dropout(0.5), nn.Linear(4096, 4096), nn.ReLU())
        self.fc8 = nn.Linear(4096, num_classes)
        self._initialise()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        maps = self.pool1(self.norm1(self.conv1(images)))
        maps = self.pool2(self.norm2(self.conv2(maps)))
        maps = self.pool5(self.conv5(self.conv4(self.conv3(maps))))
        logits: torch.Tensor = self.fc8(self.fc7(self.fc6(torch.flatten(maps, 1))))
        return logits

    def _initialise(self) -> None:
        """Draw the weights as section 5 of the paper does.

        Biases of 1 where the paper has them keep the inputs of the ReLUs
        positive at first.
        """
        ones = {"conv2.0", "conv4.0", "conv5.0", "fc6.1", "fc7.1"}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.constant_(cast("torch.Tensor", module.bias), float(name in ones))


def response_normalisation() -> nn.LocalResponseNorm:
    """Return the normalisation of section 3.3: a / (2 + 1e-4 * sum of a² over 5 channels) ^ 0.75.

    torch takes the mean of the squares where the paper takes their sum, hence
    the factor.
    """
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2)


@register("alexnet")
def alexnet(*, num_classes: Classes = 1000) -> Blueprint:
    """Build the original AlexNet for ImageNet."""
    return Blueprint(AlexNet(num_classes), _INPUT, labels(num_classes))
