"""Global average pooling, a division by the size of what it gives, and one linear layer.

With activations A [N, C, h, w], p = mean_ij A[ij] and s its size in this pass, the
logits are linear in p / s:

    layer norm   z[c] = b[c] + sum_k W[c, k] (g[k] (p[k] - mean_k p) / s + b'[k])
                 s = sqrt(mean_k (p - mean_k p)^2 + eps)
    RMS norm     z[c] = b[c] + sum_k W[c, k] (g[k] p[k] / s + b'[k])
                 s = sqrt(mean_k p^2 + eps)
    cosine       z[c] = sum_k V[c, k] p[k] / s            s = sqrt(sum_k p^2)

ConvNeXt, MaxViT, and vision transformers that pool their tokens end in the first;
ArcFace-style classifiers, which compare directions, in the last. V is what the
module gives for the unit vectors, whatever it computes of its weight.

With s held at its value of this pass the logit is linear in the cells, and its map

    CAM[c, ij] = sum_k R[c, k] A[k, ij]
    R = (W g - mean_k (W g)) / s,   W g / s,   V / s

sums to the logit: mean(CAM[c]) + sum_k W[c, k] b'[k] + b[c] = z[c]. The gradient
takes the change of s into account as well: with u = (p - mean_k p) / s or p / s,

    h w dz[c] / dA[k, ij] = R[c, k] - u[k] mean_k (R[c] u)     (cosine: sum_k)

at every cell, which Grad-CAM, HiResCAM and LayerCAM weigh the cells by. So here
HiResCAM is another map than CAM, and does not sum to the logit.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from foveate_export.anatomy.calls import Call
from foveate_export.anatomy.pooled import METHODS
from foveate_export.anatomy.recording import Map, Recording
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.forward import Forward
from foveate_export.graph.heads.base import (
    Head,
    Held,
    Target,
    last_calls,
    last_layer,
    same,
    target_of,
)
from foveate_export.graph.heads.pooled_linear import by_gradient, find_pooled, weigh

_WORDS = {
    "layer_norm": "layer norm, one linear layer",
    "rms_norm": "RMS norm, one linear layer",
    "cosine": "its direction compared with each class's",
}


class PooledScaled(Head):
    """A mean over space, divided by its size, and a linear layer."""

    held: Held

    def __init__(self, module: nn.Module, target: Target, held: Held, linear: str) -> None:
        self.module = module
        self.targets = dict.fromkeys(METHODS, target)
        self.held = held
        self.description = f"average pooling, {_WORDS[held.kind]}"
        self._activations = target.tap
        self._linear = linear

    @classmethod
    def find(cls, recording: Recording) -> Self:
        """Find the norm before the linear layer, or the layer that compares directions."""
        for call in last_calls(recording):
            compared = _mean_of(recording, call.input) if _compares_directions(call) else None
            if compared:
                cosine = Held(call.path, "cosine")
                return cls(recording.module, target_of(compared), cosine, call.path)
        last = last_layer(recording)
        for call in reversed(recording.calls):
            scaled = call.output is not None and call.output.numel() == last.input.numel()
            if call.output is None or not scaled:
                continue
            if not torch.equal(call.output.reshape(last.input.shape), last.input):
                continue
            held = _normalises(call)
            found = _mean_of(recording, call.input) if held else None
            if held and found:
                return cls(recording.module, target_of(found), held, last.path)
        raise UnsupportedHeadError(
            f"the input of {last.path!r} is no spatial mean behind a layer or RMS norm either"
        )

    def maps(self, forward: Forward, classes: Tensor) -> dict[str, Tensor]:
        """Weigh the activations with the rows of this pass, and with their gradient."""
        activations = forward.tensors[self._activations]
        mean = activations.mean((2, 3))
        if self.held.kind == "layer_norm":
            mean = mean - mean.mean(1, keepdim=True)
        size = size_of(mean, self.held)
        rows = self._rows(forward, classes) / size[:, None]
        direction = (mean / size)[:, None]
        shared = rows * direction
        length = shared.sum(2, True) if self.held.kind == "cosine" else shared.mean(2, True)
        return {
            "cam": weigh(rows, activations),
            **by_gradient(rows - direction * length, activations),
        }

    def _rows(self, forward: Forward, classes: Tensor) -> Tensor:
        """Return R times s, [N, K, C]."""
        if self.held.kind == "cosine":
            layer = self.module.get_submodule(self._linear)
            unit = torch.eye(forward.tensors[self._activations].shape[1])
            weights = {
                name: forward.parameter(f"{self._linear}.{name}")
                for name, _ in layer.named_parameters()
            }
            rows: Tensor = functional_call(layer, weights, (unit,)).T[classes]
            return rows
        rows = forward.parameter(f"{self._linear}.weight").flatten(1)[classes]
        norm = self.module.get_submodule(self.held.path)
        if norm.weight is not None:
            rows = rows * forward.parameter(f"{self.held.path}.weight")
        return rows - rows.mean(2, keepdim=True) if self.held.kind == "layer_norm" else rows


def size_of(vector: Tensor, held: Held) -> Tensor:
    """Return the size that `held` divides a vector by, centred for a layer norm: [N, 1]."""
    squares = vector.square()
    if held.kind == "cosine":
        return squares.sum(1, keepdim=True).sqrt()
    return (squares.mean(1, keepdim=True) + held.eps).sqrt()


def _mean_of(recording: Recording, pooled: Tensor | None) -> Map | None:
    """Find the map that `pooled` is the mean of."""
    if pooled is None or pooled.numel() == len(pooled):
        return None
    return find_pooled(recording, pooled.flatten(1))


def _normalises(call: Call) -> Held | None:
    """Return the divisor of a module that is a layer norm or an RMS norm of vectors, or None."""
    eps = getattr(call.module, "eps", None)
    if call.input is None or call.output is None or not hasattr(call.module, "weight"):
        return None
    x, y = call.input.flatten(1), call.output.flatten(1)
    weight, bias = (getattr(call.module, name, None) for name in ("weight", "bias"))
    sizes = {x.shape[1]} | {each.numel() for each in (weight, bias) if each is not None}
    if len(sizes) > 1 or x.shape != y.shape:
        return None
    rounding = torch.finfo(x.dtype).eps
    for held in (
        Held(call.path, "layer_norm", rounding if eps is None else eps),
        Held(call.path, "rms_norm", rounding if eps is None else eps),
    ):
        centred = x - x.mean(1, keepdim=True) if held.kind == "layer_norm" else x
        made = centred / size_of(centred, held)
        made = made if weight is None else made * weight
        if same(made if bias is None else made + bias, y):
            return held
    return None


def _compares_directions(call: Call) -> bool:
    """Whether a module's outputs are linear in the direction of the vector that it takes."""
    if call.input is None or call.output is None or call.input.ndim != 2:
        return False
    if next(call.module.parameters(), None) is None:
        return False
    size = call.input.norm(dim=1, keepdim=True)
    try:
        rows = call.module(torch.eye(call.input.shape[1]))
    except RuntimeError:
        return False
    if not isinstance(rows, Tensor) or rows.shape != (call.input.shape[1], call.output.shape[-1]):
        return False
    return same(call.input / size @ rows, call.output)
