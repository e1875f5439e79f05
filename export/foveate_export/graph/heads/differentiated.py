"""Any head, or any longer part of a classifier, whose gradient can be computed in the graph.

From the activations A [N, C, h, w] of a layer, whatever follows it, and the
gradient G[c] = dz[c] / dA of a class's logit:

    Grad-CAM  = ReLU(sum_k mean(G[c, k]) A[k])
    HiResCAM  = sum_k G[c, k] A[k]
    LayerCAM  = ReLU(sum_k ReLU(G[c, k]) A[k])

The gradient is pulled back by `foveate_export.graph.vjp`, for all K classes at once.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from foveate_export.anatomy.recording import Map, Recording
from foveate_export.anatomy.taps import Tap, tapped
from foveate_export.errors import UnknownLayerError, UnsupportedHeadError
from foveate_export.graph.forward import Forward
from foveate_export.graph.heads.base import Head, Target, find_map, target_of
from foveate_export.graph.heads.pooled_linear import weigh
from foveate_export.graph.vjp.traced import TracedForward, TracedNetwork, trace

_METHODS = ("gradcam", "hirescam", "layercam")

_AVERAGING = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity)
"""What makes a map coarser, or leaves it as it is: the map before it says more.

Maxima are not among them. Their gradient goes to one cell of each window, and
which of two nearly equal cells that is may differ from engine to engine."""


class Differentiated(Head):
    """Whatever lies between a layer and the logits, as far as every operator has a rule."""

    def __init__(self, module: nn.Module, traced: TracedNetwork, target: Target) -> None:
        self.module = module
        self.targets = dict.fromkeys(_METHODS, target)
        self._tap = target.tap
        self._traced = traced

    @classmethod
    def find(cls, recording: Recording) -> Self:
        """Take the last map that is not an average of another, and try what follows."""
        return cls.at(recording, _last_map(recording))

    @classmethod
    def at_layer(cls, recording: Recording, layer: str) -> Self:
        """Take the output of the layer called `layer`, and try to differentiate what follows it.

        Raises:
            UnknownLayerError: no layer of this name returns a map.
            UnsupportedHeadError: an operator after it has no rule, or the
                logits do not depend on it.
        """
        maps = {str(found.tap): found for found in recording.maps if found.tap.side == "output"}
        if layer not in maps:
            raise UnknownLayerError(layer, list(maps), recording.left_out.get(layer))
        return cls.at(recording, maps[layer])

    @classmethod
    def at(cls, recording: Recording, found: Map) -> Self:
        """Take the activations `found`, and try to differentiate what follows them."""
        _require_influence(recording, found.tap)
        # Any map may be asked for later, and to trace again takes as long.
        taps = [each.tap for each in recording.maps]
        # The graph's own pixels are contiguous, and a trace depends on it.
        image = recording.image.contiguous()
        traced = trace(recording.module, image, taps)
        head = cls(recording.module, traced, target_of(found))
        classes = torch.zeros(len(image), 1, dtype=torch.int64)
        with torch.no_grad():
            head.maps(traced(image), classes)
        return head

    @property
    def selects(self) -> bool:
        """Whether a maximum stands between the layer and the logits."""
        return self._traced.selects(self._tap)

    def network(self, taps: Sequence[Tap]) -> TracedNetwork:
        """Return the classifier as it was traced, which gives every layer's map anyway."""
        missing = ", ".join(str(tap) for tap in taps if tap not in self._traced.taps)
        if missing:
            raise ValueError(f"not traced: {missing}")
        return self._traced

    def maps(self, forward: Forward, classes: Tensor) -> dict[str, Tensor]:
        """Weigh the activations with the gradients of the classes asked for."""
        if not isinstance(forward, TracedForward):
            raise TypeError("these maps need a pass of the head's own network")
        activations = forward.tensors[self._tap]
        gradient = forward.gradient(self._tap, classes)
        means = forward.mean_gradient(self._tap, classes)
        if means is None:
            means = gradient.mean((3, 4))
        weighed = activations.unsqueeze(1)
        return {
            "gradcam": weigh(means, activations).relu(),
            "hirescam": (gradient * weighed).sum(2),
            "layercam": (gradient.relu() * weighed).sum(2).relu(),
        }


def _last_map(recording: Recording) -> Map:
    """Return the map that came into being last, but for those that are averages of it."""
    seen: set[int] = set()
    last: Tensor | None = None
    for found in recording.maps:
        # A container's input is seen before it, as that of its first child.
        if id(found.tensor) not in seen:
            seen.add(id(found.tensor))
            if found.tap.side == "input" or not isinstance(found.module, _AVERAGING):
                last = found.tensor
    named = find_map(recording, lambda tensor: tensor is last)
    if named is None:
        raise UnsupportedHeadError(
            "no module takes or returns a map whose rows and columns follow the picture's"
        )
    return named


def _require_influence(recording: Recording, tap: Tap) -> None:
    """Raise UnsupportedHeadError unless the logits depend on the cells of the map at `tap`."""
    image = recording.image.clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        with tapped(recording.module, [tap]) as tensors:
            logits = recording.module(image)
        # Of random shares: the sum of all of them is constant where a softmax ends the network.
        score = (logits * torch.randn(logits.shape, generator=generator)).sum()
    gradient = None
    if score.requires_grad and tensors[tap].requires_grad:
        (gradient,) = torch.autograd.grad(score, [tensors[tap]], allow_unused=True)
    if gradient is None:
        raise UnsupportedHeadError(f"the logits do not depend on {tap}")
    if tap.layout.prefix and not tap.layout.to_nchw(gradient).any():
        raise UnsupportedHeadError(
            f"the logits depend on no cell of {tap}, but on the tokens before them alone, "
            "such as a class token"
        )
