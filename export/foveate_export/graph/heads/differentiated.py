"""Any head, or any longer part of a classifier, whose gradient can be computed in the graph.

From the activations A [N, C, h, w] of a layer, whatever follows it, and the
gradient G[c] = dz[c] / dA of a class's logit:

    Grad-CAM  = ReLU(sum_k mean(G[c, k]) A[k])
    HiResCAM  = sum_k G[c, k] A[k]
    LayerCAM  = ReLU(sum_k ReLU(G[c, k]) A[k])

The gradient is pulled back by `foveate_export.graph.vjp`, for all K classes at once.
"""

import operator
from collections.abc import Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor, fx, nn

from foveate_export.anatomy.recording import Map, Recording
from foveate_export.anatomy.taps import Tap
from foveate_export.errors import UnknownLayerError, UnsupportedHeadError
from foveate_export.graph.forward import Forward
from foveate_export.graph.heads.base import Head, Target, find_map, gradients, target_of
from foveate_export.graph.heads.pooled_linear import weigh
from foveate_export.graph.vjp.traced import TracedForward, TracedNetwork, trace

_METHODS = ("gradcam", "hirescam", "layercam")

_AVERAGING = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity)
"""What makes a map coarser, or leaves it as it is: the map before it says more.

Maxima are not among them. Their gradient goes to one cell of each window, and
which of two nearly equal cells that is may differ from engine to engine."""


class Differentiated(Head):
    """Whatever lies between a layer and the logits, as far as every operator has a rule."""

    description = "differentiated operator by operator"

    def __init__(self, module: nn.Module, traced: TracedNetwork, target: Target) -> None:
        self.module = module
        self.targets = dict.fromkeys(_METHODS, target)
        self._tap = target.tap
        self._traced = traced

    @classmethod
    def find(cls, recording: Recording) -> Self:
        """Take the last map that the logits depend on, and whose gradient can be computed.

        Maps that are averages of another are passed over: the map before them says more.

        Raises:
            UnsupportedHeadError: there is none; says why the last one is not.
        """
        last = _last_maps(recording)
        if not last:
            raise UnsupportedHeadError(
                "no module takes or returns a map whose rows and columns follow the picture's"
            )
        return cls._first(recording, last)

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
        return cls._first(recording, [maps[layer]])

    @classmethod
    def _first(cls, recording: Recording, candidates: Sequence[Map]) -> Self:
        """Take the first of `candidates` that the logits can be differentiated by."""
        reasons = _without_influence(recording, [found.tap for found in candidates])
        left = [found for found in candidates if found.tap not in reasons]
        if left:
            # Any map may be asked for later, and to trace again takes as long.
            taps = [each.tap for each in recording.maps]
            # The graph's own pixels are contiguous, and a trace depends on it.
            image = recording.image.contiguous()
            traced = trace(recording.module, image, taps, [found.tap for found in left])
            with torch.no_grad():
                passed = traced(image)
        for found in left:
            head = cls(recording.module, traced, target_of(found))
            try:
                with torch.no_grad():
                    head.maps(passed, torch.zeros(len(image), 1, dtype=torch.int64))
            except UnsupportedHeadError as error:
                reasons[found.tap] = str(error)
            else:
                return head
        raise UnsupportedHeadError(reasons[candidates[0].tap])

    @property
    def selects(self) -> bool:
        """Whether a maximum stands between the layer and the logits."""
        return self._traced.selects(self._tap)

    @property
    def attends(self) -> bool:
        """Whether the network has attention of some tokens to others."""
        return self._traced.attends

    def selects_after(self, node: fx.Node) -> bool:
        """Whether a maximum stands between a node of the trace and the logits."""
        return self._traced.selects_after(node)

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
        return {
            "gradcam": weigh(means.transpose(0, 1), activations).relu(),
            "hirescam": (gradient * activations).sum(2).transpose(0, 1),
            "layercam": (gradient.relu() * activations).sum(2).relu().transpose(0, 1),
        }


def _last_maps(recording: Recording) -> list[Map]:
    """Return the maps, the one that came into being last first, but for averages of others."""
    # A container's input is seen before it, as that of its first child.
    first: dict[int, Map] = {}
    for found in recording.maps:
        first.setdefault(id(found.tensor), found)
    named = (
        find_map(recording, partial(operator.is_, found.tensor))
        for found in reversed(first.values())
        if found.tap.side == "input" or not isinstance(found.module, _AVERAGING)
    )
    return [found for found in named if found is not None]


def _without_influence(recording: Recording, taps: Sequence[Tap]) -> dict[Tap, str]:
    """Return a message for each of `taps` whose map the logits do not depend on cell by cell."""
    reasons = {}
    found = gradients(recording, taps)
    weighed = {
        tap
        for tap, gradient in found.items()
        if gradient is not None and tap.layout.to_nchw(gradient).any()
    }
    for tap in found.keys() - weighed:
        if found[tap] is None:
            reasons[tap] = f"the logits do not depend on {tap}"
        elif tap.layout.prefix:
            reasons[tap] = (
                f"the logits depend on no cell of {tap}, but on the tokens before them alone, "
                "such as a class token"
            )
        elif weighed:
            # As in CoaT, where what its last convolution gives does not reach the class token.
            reasons[tap] = f"the logits depend on no cell of {tap}"
    return reasons
