"""Global average pooling and one linear layer: the class activation map.

With activations A [N, C, h, w], weights W [classes, C] and bias b the logits are

    z[c] = b[c] + sum_k W[c, k] mean_ij A[k, i, j]

and the class activation map of Zhou et al., "Learning Deep Features for
Discriminative Localization" (CVPR 2016), takes the mean off:

    CAM[c, i, j] = sum_k W[c, k] A[k, i, j]

so that mean(CAM[c]) + b[c] = z[c]. Since dz[c] / dA[k, i, j] = W[c, k] / (h w),
it is also sum_k (sum_ij dz[c] / dA[k, i, j]) A[k], Grad-CAM times h w before its
ReLU, which is how the export checks it against autograd.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from foveate_export.errors import UnsupportedHeadError
from foveate_export.heads.base import Head, last_layer
from foveate_export.taps import Call, Tap

_POOLING_TOLERANCE = 1e-5
"""Of the largest mean. Summing 100 to 10,000 floats in another order moves their
mean by some 1e-7; another kind of pooling moves it by far more than 1e-5."""


class PooledLinear(Head):
    """A mean over space and a linear layer, or a 1x1 convolution in its place."""

    methods = ("cam",)

    def __init__(
        self, activations: Tap, size: tuple[int, int], linear: nn.Linear | nn.Conv2d
    ) -> None:
        self.activations = activations
        self.size = size
        self._linear = linear

    @classmethod
    def find(cls, logits: Tensor, calls: Sequence[Call]) -> Self:
        """Find the 4-D activation whose spatial mean the linear layer takes."""
        last = last_layer(logits, calls)
        if last.input.numel() != len(logits) * last.module.weight.shape[1]:
            raise UnsupportedHeadError(
                f"the layer that returns the logits, {last.path!r}, takes a map and not its mean"
            )
        pooled = last.input.reshape(len(logits), -1)
        candidates = [
            (tap, tensor)
            for call in calls
            for tap, tensor in (
                (Tap(call.path), call.output),
                (Tap(call.path, "input"), call.input),
            )
            if tensor is not None and _has_mean(tensor, pooled)
        ]
        if not candidates:
            raise UnsupportedHeadError(
                f"the input of the layer that returns the logits, {last.path!r}, "
                "is not the spatial mean of any module's activations"
            )
        # The same tensor leaves a stage, its last block and that block's
        # activation: the stage is the name that people use.
        activations, tensor = min(
            candidates, key=lambda found: (found[0].side == "input", found[0].path.count("."))
        )
        return cls(activations, (tensor.shape[2], tensor.shape[3]), last.module)

    def maps(self, tensors: Mapping[Tap, Tensor], classes: Tensor) -> dict[str, Tensor]:
        """Weigh the activations with the rows of the classes asked for."""
        activations = tensors[self.activations]
        rows = self._linear.weight.flatten(1)[classes]
        cam = torch.matmul(rows, activations.flatten(2))
        return {"cam": cam.reshape(*cam.shape[:2], *activations.shape[2:])}


def _has_mean(tensor: Tensor, pooled: Tensor) -> bool:
    if tensor.ndim != 4 or tensor.shape[:2] != pooled.shape:
        return False
    if tensor.shape[2] * tensor.shape[3] == 1:
        return False
    difference = (tensor.mean((2, 3)) - pooled).abs().max()
    return bool(difference <= _POOLING_TOLERANCE * pooled.abs().max())
