"""Ten equal convolutions, to study activations and normalisation on."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from foveate_train.networks.digits import DIGITS, MNIST_INPUT
from foveate_train.networks.layers import Maxout
from foveate_train.registry import Blueprint, register

Activation = Literal["sigmoid", "tanh", "relu", "leaky_relu", "relu6", "elu", "maxout", "mish"]
Normalisation = Literal["none", "batch"]

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "relu6": nn.ReLU6,
    "elu": nn.ELU,
    "maxout": Maxout,
    "mish": nn.Mish,
}
_CHANNELS = 32
_MAXOUT_PIECES = 2


class PlainLayer(nn.Sequential):
    """A 3x3 convolution that keeps height and width, normalisation, activation.

    Under maxout the convolution has twice the filters, so that as many
    channels come out as with every other activation.
    """

    def __init__(self, inputs: int, activation: Activation, normalisation: Normalisation) -> None:
        filters = _CHANNELS * (_MAXOUT_PIECES if activation == "maxout" else 1)
        normalised = normalisation == "batch"
        layers: list[nn.Module] = [nn.Conv2d(inputs, filters, 3, padding=1, bias=not normalised)]
        if normalised:
            layers.append(nn.BatchNorm2d(filters))
        super().__init__(*layers, ACTIVATIONS[activation]())


class Plain10(nn.Module):
    """Ten 3x3 convolutions of 32 channels without pooling, and a linear layer.

    The linear layer reads the global average of the last maps. Maps float32
    [N, 1, 28, 28] to logits [N, 10].
    """

    def __init__(self, activation: Activation, normalisation: Normalisation) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                PlainLayer(inputs, activation, normalisation)
                for inputs in (MNIST_INPUT.channels, *[_CHANNELS] * 9)
            )
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(_CHANNELS, len(DIGITS))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(self.layers(images)), 1))
        return logits


@register("plain10")
def plain10(
    *, activation: Activation = "relu", normalisation: Normalisation = "batch"
) -> Blueprint:
    """Build the ten-layer network for MNIST with one activation throughout."""
    return Blueprint(Plain10(activation, normalisation), MNIST_INPUT, DIGITS)
