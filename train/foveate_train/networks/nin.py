"""Network in Network (Lin et al., 2013)."""

import torch
from torch import nn

from foveate_train.networks.imagenet import IMAGENET_INPUT, Classes, labels
from foveate_train.registry import Blueprint, register


class MLPConv(nn.Sequential):
    """A convolution followed by two of 1x1: a small perceptron slides over the picture.

    All three have `filters` channels, but for the last where `outputs` is given.
    """

    def __init__(
        self,
        inputs: int,
        filters: int,
        size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        outputs: int | None = None,
    ) -> None:
        super().__init__(
            nn.Conv2d(inputs, filters, size, stride, padding),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 1),
            nn.ReLU(),
            nn.Conv2d(filters, filters if outputs is None else outputs, 1),
            nn.ReLU(),
        )


class NIN(nn.Module):
    """NIN for ImageNet: 7,595,176 parameters and no linear layer.

    The last layer makes one map a class, and the average of a class's map is
    its logit: the maps are class activation maps as they stand. Maps float32
    [N, 3, 224, 224] to logits [N, num_classes].

        layer   kernels                    output
        mlp1    11x11 / 4, 1x1, 1x1        96 x 54 x 54
        pool1   3x3 / 2                    96 x 27 x 27
        mlp2    5x5, 1x1, 1x1              256 x 27 x 27
        pool2   3x3 / 2                    256 x 13 x 13
        mlp3    3x3, 1x1, 1x1              384 x 13 x 13
        pool3   3x3 / 2                    384 x 6 x 6
        mlp4    dropout 0.5, 3x3, 1x1, 1x1 num_classes x 6 x 6 (1024 channels within)
        avgpool                            num_classes
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.mlp1 = MLPConv(3, 96, 11, stride=4)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.mlp2 = MLPConv(96, 256, 5, padding=2)
        self.pool2 = nn.MaxPool2d(3, stride=2)
        self.mlp3 = MLPConv(256, 384, 3, padding=1)
        self.pool3 = nn.MaxPool2d(3, stride=2)
        self.dropout = nn.Dropout(0.5)
        self.mlp4 = MLPConv(384, 1024, 3, padding=1, outputs=num_classes)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        maps = self.pool1(self.mlp1(images))
        maps = self.pool2(self.mlp2(maps))
        maps = self.pool3(self.mlp3(maps))
        return torch.flatten(self.avgpool(self.mlp4(self.dropout(maps))), 1)


@register("nin")
def nin(*, num_classes: Classes = 1000) -> Blueprint:
    """Build NIN for ImageNet."""
    return Blueprint(NIN(num_classes), IMAGENET_INPUT, labels(num_classes))
