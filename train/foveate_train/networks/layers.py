"""Layers that several networks are made of."""

import torch
from torch import nn


class ConvBNReLU(nn.Sequential):
    """A convolution, batch normalisation and ReLU.

    A kernel of an odd size is padded so that stride 1 keeps height and width
    and stride 2 halves them, rounding up.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int = 3, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            # The normalisation's shift makes a bias superfluous.
            nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class Maxout(nn.Module):
    """The largest of every `pieces` neighbouring channels (Goodfellow et al., 2013).

    The layer before it computes `pieces` linear maps for each of its outputs;
    their maximum is a convex, piecewise linear activation that is learnt. Maps
    [N, pieces * C, H, W] to [N, C, H, W].
    """

    def __init__(self, pieces: int = 2) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the maximum of each group of channels."""
        batch, channels, height, width = maps.shape
        groups = maps.reshape(batch, channels // self.pieces, self.pieces, height, width)
        return groups.amax(2)

    def extra_repr(self) -> str:
        """Show the pieces where the network is printed."""
        return f"pieces={self.pieces}"
