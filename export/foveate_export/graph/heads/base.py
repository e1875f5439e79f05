"""What every kind of head offers, and how the layer behind the logits is found."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate_export.anatomy.calls import is_pointwise
from foveate_export.anatomy.recording import Map, Recording
from foveate_export.anatomy.taps import Tap
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.forward import Forward, HookedNetwork


@dataclass(frozen=True)
class Target:
    """What a map weighs: the activations at `tap`, and their size in cells."""

    tap: Tap
    height: int
    width: int


class Head(ABC):
    """The way from the activations of one layer to the logits.

    Names the classifier's parameters and holds no copies of them, so that the
    exported graph holds each weight once.
    """

    module: nn.Module
    """The classifier's network."""

    targets: Mapping[str, Target]
    """What the map of each method weighs; the default method comes first."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that `maps` computes, the default first."""
        return tuple(self.targets)

    @property
    def selects(self) -> bool:
        """Whether gradients pass through a maximum, which hands each to one cell of a window.

        Which one that is among cells equal to within rounding, engines decide
        differently.
        """
        return False

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The tensors of the forward pass that `maps` needs."""
        return tuple(dict.fromkeys(target.tap for target in self.targets.values()))

    def network(self, taps: Sequence[Tap]) -> nn.Module:
        """Return what runs the classifier and returns a `Forward` that `maps` can use.

        Args:
            taps: further tensors to read, outputs of the classifier's modules;
                those of the head are read as well.
        """
        return HookedNetwork(self.module, [*self.taps, *taps])

    @abstractmethod
    def maps(self, forward: Forward, classes: Tensor) -> dict[str, Tensor]:
        """Compute the maps, in a way that the exporter can trace.

        Args:
            forward: a pass of `network`.
            classes: class indices, int64 [N, K].

        Returns:
            By method, the raw map of every class asked for: float [N, K, h, w].
        """


@dataclass(frozen=True)
class LastLayer:
    """The linear layer that returns the logits, or a 1x1 convolution in its place."""

    path: str
    module: nn.Linear | nn.Conv2d
    input: Tensor


def last_layer(recording: Recording) -> LastLayer:
    """Return the layer whose output is the logits, up to the shape.

    Raises:
        UnsupportedHeadError: another kind of layer returns them.
    """
    logits = recording.logits
    for call in reversed(recording.calls):
        if call.input is None or call.output is None or call.output.numel() != logits.numel():
            continue
        if not torch.equal(call.output.reshape(logits.shape), logits):
            continue
        if isinstance(call.module, nn.Linear) or is_pointwise(call.module):
            return LastLayer(call.path, call.module, call.input)
    raise UnsupportedHeadError("no linear layer returns the logits")


def find_map(recording: Recording, fits: Callable[[Tensor], bool]) -> Map | None:
    """Find the map that fits, under the name that people know it by.

    The same tensor leaves a stage, its last block, that block's activation, and
    a convolution that the activation follows in place. The stage is the name
    that people use; among layers of no parts it is the last.

    Args:
        recording: the forward pass.
        fits: tells whether a map, [N, C, h, w], is the one.

    Returns:
        The map; None where none fits.
    """
    fitting = [found for found in recording.maps if fits(found.tensor)]
    return min(
        reversed(fitting),
        key=lambda found: (
            found.tap.side == "input",
            found.tap.path.count("."),
            not any(found.module.children()),
        ),
        default=None,
    )


def target_of(found: Map) -> Target:
    """Return what a map of `found` weighs."""
    return Target(found.tap, *found.tensor.shape[2:])
