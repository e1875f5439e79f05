"""Global average pooling and one linear layer: the class activation map.

With activations A [N, C, h, w], weights W [classes, C] and bias b the logits are

    z[c] = b[c] + sum_k W[c, k] mean_ij A[k, i, j]

and the class activation map of Zhou et al., "Learning Deep Features for
Discriminative Localization" (CVPR 2016), takes the mean off:

    CAM[c, i, j] = sum_k W[c, k] A[k, i, j]

so that mean(CAM[c]) + b[c] = z[c]. The gradient is the same at every cell,
dz[c] / dA[k, i, j] = W[c, k] / (h w), which leaves of the methods of
`foveate_export.proof.reference`

    Grad-CAM  = ReLU(CAM) / (h w)
    HiResCAM  = CAM / (h w)
    LayerCAM  = ReLU(sum_k ReLU(W[c, k]) A[k]) / (h w)
"""

from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from foveate_export.anatomy.recording import Recording
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.forward import Forward
from foveate_export.graph.heads.base import Head, Target, find_map, last_layer, target_of

_POOLING_TOLERANCE = 1e-5
"""Of the largest mean. Summing 100 to 10,000 floats in another order moves their
mean by some 1e-7; another kind of pooling moves it by far more than 1e-5."""


class PooledLinear(Head):
    """A mean over space and a linear layer, or a 1x1 convolution in its place."""

    def __init__(self, module: nn.Module, target: Target, weight: str) -> None:
        self.module = module
        self.targets = dict.fromkeys(("cam", "gradcam", "hirescam", "layercam"), target)
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
        pooled = last.input.reshape(images, -1)
        found = find_map(recording, partial(has_mean, pooled))
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
        cam = weigh(rows, activations)
        mean = cam / (activations.shape[2] * activations.shape[3])
        positive = weigh(rows.relu(), activations)
        return {
            "cam": cam,
            "gradcam": mean.relu(),
            "hirescam": mean,
            "layercam": positive.relu() / (activations.shape[2] * activations.shape[3]),
        }


def weigh(rows: Tensor, activations: Tensor) -> Tensor:
    """Sum the channels of [N, C, h, w] with the weights [N, K, C]: [N, K, h, w]."""
    maps = torch.matmul(rows, activations.flatten(2))
    return maps.reshape(*rows.shape[:2], *activations.shape[2:])


def has_mean(mean: Tensor, tensor: Tensor) -> bool:
    """Whether `tensor` is a map whose mean over space is `mean`, [N, C]."""
    if tensor.shape[:2] != mean.shape:
        return False
    difference = (tensor.mean((2, 3)) - mean).abs().max()
    return bool(difference <= _POOLING_TOLERANCE * mean.abs().max())
