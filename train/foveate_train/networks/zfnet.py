"""ZFNet (Zeiler & Fergus, Visualizing and understanding convolutional networks, 2013)."""

import torch
from torch import nn

from foveate_train.networks.alexnet import response_normalisation
from foveate_train.networks.imagenet import IMAGENET_INPUT, Classes, labels
from foveate_train.registry import Blueprint, register


class ZFNet(nn.Module):
    """AlexNet with a finer first layer and without groups: 62,357,608 parameters.

    Looking at what AlexNet's first two layers had learnt led the authors to
    smaller filters and strides there (figure 3 of the paper). Maps float32
    [N, 3, 224, 224] to logits [N, num_classes].

        layer   kernel       output
        conv1   7x7 / 2      96 x 110 x 110
        pool1   3x3 / 2      96 x 55 x 55    response normalisation
        conv2   5x5 / 2      256 x 26 x 26
        pool2   3x3 / 2      256 x 13 x 13   response normalisation
        conv3   3x3          384 x 13 x 13
        conv4   3x3          384 x 13 x 13
        conv5   3x3          256 x 13 x 13
        pool5   3x3 / 2      256 x 6 x 6
        fc6     dropout 0.5  4096
        fc7     dropout 0.5  4096
        fc8                  num_classes
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 96, 7, stride=2, padding=1), nn.ReLU())
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.norm1 = response_normalisation()
        self.conv2 = nn.Sequential(nn.Conv2d(96, 256, 5, stride=2), nn.ReLU())
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.norm2 = response_normalisation()
        self.conv3 = nn.Sequential(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU())
        self.conv4 = nn.Sequential(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU())
        self.conv5 = nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU())
        self.pool5 = nn.MaxPool2d(3, stride=2)
        self.fc6 = nn.Sequential(nn.Linear(256 * 6 * 6, 4096), nn.ReLU(), nn.Dropout(0.5))
        self.fc7 = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(0.5))
        self.fc8 = nn.Linear(4096, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        maps = self.norm1(self.pool1(self.conv1(images)))
        maps = self.norm2(self.pool2(self.conv2(maps)))
        maps = self.pool5(self.conv5(self.conv4(self.conv3(maps))))
        logits: torch.Tensor = self.fc8(self.fc7(self.fc6(torch.flatten(maps, 1))))
        return logits


@register("zfnet")
def zfnet(*, num_classes: Classes = 1000) -> Blueprint:
    """Build ZFNet for ImageNet."""
    return Blueprint(ZFNet(num_classes), IMAGENET_INPUT, labels(num_classes))
