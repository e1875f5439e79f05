"""A classifier of sounds by their spectrograms (Salamon & Bello, 2017)."""

import torch
from torch import nn

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.registry import Blueprint, register

# The classes of UrbanSound8K, which the network was made for.
_SOUNDS = (
    "air conditioner",
    "car horn",
    "children playing",
    "dog bark",
    "drilling",
    "engine idling",
    "gun shot",
    "jackhammer",
    "siren",
    "street music",
)
_INPUT = InputSpec(
    height=128,
    width=128,
    channels=1,
    resize=128,
    interpolation="bilinear",
    mean=(0.5,),
    std=(0.5,),
)


class SpectrogramCNN(nn.Module):
    """Three convolutions and two linear layers: 241,434 parameters.

    The network of Deep convolutional neural networks and data augmentation for
    environmental sound classification. A sound of three seconds becomes a grey
    picture, 128 mel bands high (low frequencies at the bottom) and 128 frames
    wide; pooling is twice as coarse in frequency as in time. Maps float32
    [N, 1, 128, 128] to logits [N, 10].

        layer   kernel       output
        conv1   5x5          24 x 124 x 124
        pool1   4x2          24 x 31 x 62
        conv2   5x5          48 x 27 x 58
        pool2   4x2          48 x 6 x 29
        conv3   5x5          48 x 2 x 25
        fc1     dropout 0.5  64
        fc2     dropout 0.5  10
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, 24, 5), nn.ReLU())
        self.pool1 = nn.MaxPool2d((4, 2))
        self.conv2 = nn.Sequential(nn.Conv2d(24, 48, 5), nn.ReLU())
        self.pool2 = nn.MaxPool2d((4, 2))
        self.conv3 = nn.Sequential(nn.Conv2d(48, 48, 5), nn.ReLU())
        self.fc1 = nn.Sequential(nn.Dropout(0.5), nn.Linear(48 * 2 * 25, 64), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, len(_SOUNDS)))

    def forward(self, spectrograms: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised spectrograms."""
        maps = self.pool2(self.conv2(self.pool1(self.conv1(spectrograms))))
        logits: torch.Tensor = self.fc2(self.fc1(torch.flatten(self.conv3(maps), 1)))
        return logits


@register("spectrogram_cnn")
def spectrogram_cnn() -> Blueprint:
    """Build the network for the ten classes of UrbanSound8K."""
    return Blueprint(SpectrogramCNN(), _INPUT, _SOUNDS)
