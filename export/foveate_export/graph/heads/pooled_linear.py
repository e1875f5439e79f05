"""Global average pooling and one linear layer: the class activation map.

With activations A [N, C, h, w], weights W [classes, C] and bias b the logits are

    z[c] = b[c] + sum_k W[c, k] mean_ij A[k, i, j]

and the class activation map of Zhou et al., "Learning Deep Features for
Discriminative Localization" (CVPR 2016), takes the mean off:

    CAM[c, i, j] = sum_k W[c, k] A[k, i, j]

so that mean(CAM[c]) + b[c] = z[c]. The gradient is the same at every cell,
dz[c] / dA[k, i, j] = W[c, k] / (h w); `foveate_export.anatomy.pooled` has the maps
that follow.
"""

from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from foveate_export.anatomy import pooled
from foveate_export.anatomy.recording import Map, Recording
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.forward import Forward
from foveate_export.graph.heads.base import (
    Head,
    Target,
    find_map,
    gradients,
    last_layer,
    target_of,
)

_POOLING_TOLERANCE = 1e-5
"""Of the largest mean. Summing 100 to 10,000 floats in another order moves their
mean by some 1e-7; another kind of pooling moves it by far more than 1e-5."""

_EVEN = 1e-3
"""Of the largest gradient, between two cells. A normalisation of each cell moves it by tenths."""


class PooledLinear(Head):
    """A mean over space and a linear layer, or a 1x1 convolution in its place."""

    description = pooled.DESCRIPTION

    def __init__(self, module: nn.Module, target: Target, weight: str) -> None:
        self.module = module
        self.targets = dict.fromkeys(pooled.METHODS, target)
        self._activations = target.tap
        self._weight = weight

    @classmethod
    def find(cls, recording: Recording) -> Self:
        """Find the 4-D activation whose spatial mean the linear layer takes."""
        last = last_layer(recording)
        images = len(recording.logits)
        if last.input.numel() != images * last.module.weight.shape[1]:
            raise UnsupportedHeadError(
                f"the layer that returns the logits, {last.path!r}, takes a map and not its mean"
            )
        found = find_pooled(recording, last.input.reshape(images, -1))
        if found is None:
            raise UnsupportedHeadError(
                f"the input of the layer that returns the logits, {last.path!r}, "
                "is not the spatial mean of any module's activations"
            )
        return cls(recording.module, target_of(found), f"{last.path}.weight")

    def maps(self, forward: Forward, classes: Tensor) -> dict[str, Tensor]:
        """Weigh the activations with the rows of the classes asked for."""
        activations = forward.tensors[self._activations]
        rows = forward.parameter(self._weight).flatten(1)[classes]
        return {"cam": weigh(rows, activations), **by_gradient(rows, activations)}


def by_gradient(rows: Tensor, activations: Tensor) -> dict[str, Tensor]:
    """Return the maps by a gradient that is `rows` / (h w) at every cell.

    Args:
        rows: the gradient of the logits with respect to the mean, [N, K, C].
        activations: [N, C, h, w].
    """
    cells = activations.shape[2] * activations.shape[3]
    weigh_by = partial(weigh, activations=activations)
    return pooled.by_gradient(rows, weigh_by(rows), weigh_by, torch.relu, lambda maps: maps / cells)


def weigh(rows: Tensor, activations: Tensor) -> Tensor:
    """Sum the channels of [N, C, h, w] with the weights [N, K, C]: [N, K, h, w]."""
    maps = torch.matmul(rows, activations.flatten(2))
    return maps.reshape(*rows.shape[:2], *activations.shape[2:])


def find_pooled(recording: Recording, mean: Tensor) -> Map | None:
    """Find the map whose mean over space is `mean`, [N, C], and that counts by its mean alone.

    Another map may have the same mean by chance: that before a normalisation of what
    is normalised already, as in a Swin V2 that was not trained. Its gradient is not
    the same at every cell.
    """
    fitting = [found for found in recording.maps if has_mean(mean, found.tensor)]
    by_tap = gradients(recording, [found.tap for found in fitting]) if fitting else {}
    even = {
        id(found.tensor)
        for found in fitting
        if (gradient := by_tap[found.tap]) is None or _is_even(found.tap.layout.to_nchw(gradient))
    }
    return find_map(recording, lambda tensor: id(tensor) in even)


def _is_even(gradient: Tensor) -> bool:
    """Whether a gradient, [N, C, h, w], is the same at every cell."""
    uneven = (gradient - gradient.mean((2, 3), keepdim=True)).abs().max()
    return bool(uneven <= _EVEN * gradient.abs().max())


def has_mean(mean: Tensor, tensor: Tensor) -> bool:
    """Whether `tensor` is a map whose mean over space is `mean`, [N, C]."""
    if tensor.shape[:2] != mean.shape:
        return False
    difference = (tensor.mean((2, 3)) - mean).abs().max()
    return bool(difference <= _POOLING_TOLERANCE * mean.abs().max())
