"""A small classic of the first Keras tutorials, whose filters are simple to look at."""

import torch
from torch import nn

from foveate_train.networks.digits import DIGITS, MNIST_INPUT
from foveate_train.registry import Blueprint, register


class KerasCNN(nn.Module):
    """Two convolutions, each followed by max-pooling, and two linear layers.

    The convolutions have no activation of their own: the maximum of the
    pooling and the ReLU of the first linear layer are all that is not linear.
    Shapes after each layer: 25x26x26, 25x13x13, 50x11x11, 50x5x5, 1250, 100,
    10. Maps float32 [N, 1, 28, 28] to logits [N, 10].
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 25, 3)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(25, 50, 3)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * 5 * 5, 100)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(100, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        maps = self.pool2(self.conv2(self.pool1(self.conv1(images))))
        logits: torch.Tensor = self.fc2(self.relu(self.fc1(torch.flatten(maps, 1))))
        return logits


@register("keras_cnn")
def keras_cnn() -> Blueprint:
    """Build the network for MNIST."""
    return Blueprint(KerasCNN(), MNIST_INPUT, DIGITS)
