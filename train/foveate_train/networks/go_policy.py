"""The policy network of AlphaGo (Silver et al., 2016): a classifier of where to play."""

from typing import Literal

import torch
from torch import nn

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.registry import Blueprint, register

_SIZE = 19
_PLANES = 48
# The board's letters leave out I.
_POINTS = tuple(f"{column}{row}" for row in range(_SIZE, 0, -1) for column in "ABCDEFGHJKLMNOPQRST")
# A plane's pixel of 1 is the network's 1.
_INPUT = InputSpec(
    height=_SIZE,
    width=_SIZE,
    channels=_PLANES,
    resize=_SIZE,
    interpolation="nearest",
    mean=(0.0,) * _PLANES,
    std=(1 / 255,) * _PLANES,
)


class GoPolicy(nn.Module):
    """Thirteen convolutions over the board, and a logit for each of its 361 points.

    The first has 5x5 kernels, the next eleven 3x3, all `filters` of them and
    zero-padded, and the last is one 1x1 kernel with a bias of its own for each
    point. Nothing is pooled: the logits are a map of the board, row by row
    from the top. Maps float32 [N, 48, 19, 19], the feature planes of the
    paper's extended data table 2, to logits [N, 361].
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(_PLANES, filters, 5, padding=2), nn.ReLU()]
        for _ in range(11):
            layers += [nn.Conv2d(filters, filters, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.points = nn.Conv2d(filters, 1, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(len(_POINTS)))
        for layer in self.layers:
            # Nothing is normalised: by PyTorch's own initialisation the signal would fade
            # over thirteen layers (He et al., Delving deep into rectifiers, 2015).
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of positions."""
        return torch.flatten(self.points(self.layers(planes)), 1) + self.bias


@register("go_policy")
def go_policy(*, filters: Literal[32, 128, 192, 256, 384] = 192) -> Blueprint:
    """Build the policy network with one of the published numbers of filters, or with 32."""
    return Blueprint(GoPolicy(filters), _INPUT, _POINTS)
