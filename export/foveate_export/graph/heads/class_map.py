"""A convolution that gives every class a map of its own: the score map is the explanation.

SqueezeNet and NIN end in a 1x1 convolution from the activations A [N, C, h, w]
to one channel a class, with or without a ReLU, and the mean of that channel is
the logit:

    S[c] = f(sum_k W[c, k] A[k] + b[c])      z[c] = mean(S[c])

A network whose classes are the points of a board gives the points of one
channel, or of several, as its logits: z = S, flattened. In both cases

    CAM[c] = S[the channel of c]

is the class map itself: its mean, or its value at the class's point, is z[c]
but for that bias.
With M[c] the gradient dz[c] / dS[the channel of c], which is 1 / (h w) or 1 at
the class's point and 0 elsewhere, times 1(S > 0) where f is the ReLU, the
gradient at A is W[c, k] M[c], and so

    Grad-CAM  = ReLU(mean(M[c]) sum_k W[c, k] A[k])
    HiResCAM  = M[c] sum_k W[c, k] A[k]
    LayerCAM  = M[c] ReLU(sum_k ReLU(W[c, k]) A[k])

of which the first two differ because of the ReLU's mask.
"""

from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from foveate_export.anatomy.calls import is_pointwise
from foveate_export.anatomy.recording import Recording
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.forward import Forward
from foveate_export.graph.heads.base import Head, Target, find_map, same, target_of
from foveate_export.graph.heads.pooled_linear import has_mean, weigh

_TOLERANCE = 1e-4
"""Of the largest score, between what is added to it in two pictures."""


@dataclass(frozen=True)
class _Scores:
    """The score map: its tap, its shape, and how the logits come from it."""

    target: Target
    tensor: Tensor
    pooled: bool


class ClassMap(Head):
    """A 1x1 convolution to score maps, and their mean or their points as logits."""

    def __init__(
        self,
        module: nn.Module,
        scores: _Scores,
        activations: Target,
        convolution: str,
        *,
        masked: bool,
    ) -> None:
        self.module = module
        self.targets = {"cam": scores.target} | dict.fromkeys(
            ("gradcam", "hirescam", "layercam"), activations
        )
        self.description = (
            "one map a class, averaged" if scores.pooled else "the points of a map are the classes"
        )
        self._weight = f"{convolution}.weight"
        self._pooled = scores.pooled
        self._masked = masked

    @classmethod
    def find(cls, recording: Recording) -> Self:
        """Find the score map, and the 1x1 convolution that it comes from."""
        scores = _find_scores(recording)
        for call in reversed(recording.calls):
            given = call.input
            if given is None or not is_pointwise(call.module):
                continue
            linear = call.module(given)
            masked = same(linear.relu(), scores.tensor)
            if not masked and not same(linear, scores.tensor):
                continue
            found = find_map(recording, partial(torch.equal, given))
            if found is not None:
                return cls(recording.module, scores, target_of(found), call.path, masked=masked)
        raise UnsupportedHeadError(
            f"the class map {scores.target.tap} is not the output of a 1x1 convolution, "
            "with or without a ReLU"
        )

    def maps(self, forward: Forward, classes: Tensor) -> dict[str, Tensor]:
        """Pick the score maps of the classes and weigh the activations by their gradients."""
        scores = forward.tensors[self.targets["cam"].tap]
        activations = forward.tensors[self.targets["gradcam"].tap]
        height, width = scores.shape[2:]
        cells = height * width
        channels = classes if self._pooled else classes // cells
        index = channels[:, :, None, None].expand(-1, -1, height, width)
        cam = scores.gather(1, index)
        gradient = torch.ones_like(cam) / cells if self._pooled else _point(classes, cam)
        if self._masked:
            gradient = gradient * (cam > 0)
        rows = forward.parameter(self._weight).flatten(1)[channels]
        weighed = weigh(rows, activations)
        return {
            "cam": cam,
            "gradcam": (gradient.mean((2, 3), keepdim=True) * weighed).relu(),
            "hirescam": gradient * weighed,
            "layercam": gradient * weigh(rows.relu(), activations).relu(),
        }


def _point(classes: Tensor, maps: Tensor) -> Tensor:
    """Return 1 at the point of each class and 0 elsewhere, in the shape of `maps`."""
    height, width = maps.shape[2:]
    points = torch.arange(height * width).reshape(height, width)
    return (points == (classes % (height * width))[:, :, None, None]).to(maps.dtype)


def _find_scores(recording: Recording) -> _Scores:
    for pooled, leads_to in ((True, has_mean), (False, _has_points)):
        found = find_map(recording, partial(leads_to, recording.logits))
        if found is not None:
            return _Scores(target_of(found), found.tensor, pooled)
    raise UnsupportedHeadError("the logits are neither the means nor the points of any map")


def _has_points(logits: Tensor, tensor: Tensor) -> bool:
    """Whether the logits are the values of a map plus what no picture changes."""
    if tensor.numel() != logits.numel():
        return False
    bias = logits - tensor.reshape(logits.shape)
    return bool((bias - bias[:1]).abs().max() <= _TOLERANCE * tensor.abs().max())
