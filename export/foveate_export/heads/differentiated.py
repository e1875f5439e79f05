"""Any head, or any longer part of a classifier, whose gradient can be computed in the graph.

From the activations A [N, C, h, w] of a layer, whatever follows it, and the
gradient G[c] = dz[c] / dA of a class's logit:

    Grad-CAM  = ReLU(sum_k mean(G[c, k]) A[k])
    HiResCAM  = sum_k G[c, k] A[k]
    LayerCAM  = ReLU(sum_k ReLU(G[c, k]) A[k])

The gradient is pulled back by `foveate_export.vjp`, for all K classes at once.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from foveate_export.errors import UnknownLayerError, UnsupportedHeadError
from foveate_export.forward import Forward
from foveate_export.heads.base import Head, Target, find_map, is_map, maps_of
from foveate_export.heads.pooled_linear import weigh
from foveate_export.taps import Recording, Tap
from foveate_export.vjp.traced import TracedForward, TracedNetwork, trace

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
        maps = {call.path: call.output for call in recording.calls if is_map(call.output)}
        if layer not in maps:
            raise UnknownLayerError(layer, list(maps))
        return cls.at(recording, Target(Tap(layer), *maps[layer].shape[2:]))

    @classmethod
    def at(cls, recording: Recording, target: Target) -> Self:
        """Take the activations at `target`, and try to differentiate what follows it."""
        # Any map may be asked for later, and to trace again takes as long.
        taps = [tap for tap, _ in maps_of(recording.calls)]
        # The graph's own pixels are contiguous, and a trace depends on it.
        image = recording.image.contiguous()
        traced = trace(recording.module, image, taps)
        head = cls(recording.module, traced, target)
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


def _last_map(recording: Recording) -> Target:
    """Return the map that came into being last, but for those that are averages of it."""
    seen: set[int] = set()
    last: Tensor | None = None
    for call in recording.calls:
        # A container's input is seen before it, as that of its first child.
        for tensor, made_by in ((call.input, None), (call.output, call.module)):
            if is_map(tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                if not isinstance(made_by, _AVERAGING):
                    last = tensor
    found = find_map(recording, lambda tensor: tensor is last)
    if found is None:
        raise UnsupportedHeadError("no module takes or returns a map of more than one cell")
    return found[0]
