"""Two heads as one: the class activation map of the last layer, the rest of an earlier one."""

from collections.abc import Sequence

from torch import Tensor, nn

from foveate_export.anatomy.taps import Tap
from foveate_export.graph.forward import Forward
from foveate_export.graph.heads.base import Head


class Joined(Head):
    """The methods of two heads; those of `second` where both have one."""

    def __init__(self, first: Head, second: Head) -> None:
        self.module = second.module
        self.targets = {**first.targets, **second.targets}
        self.held = first.held
        self.description = f"{first.description}; from the layer chosen, {second.description}"
        self._first = first
        self._second = second

    @property
    def selects(self) -> bool:
        """Whether the second head's gradients pass through a maximum; the first has none."""
        return self._second.selects

    def network(self, taps: Sequence[Tap]) -> nn.Module:
        """Return the network of `second`, with what `first` reads besides."""
        return self._second.network([*self._first.taps, *taps])

    def maps(self, forward: Forward, classes: Tensor) -> dict[str, Tensor]:
        """Compute the maps of both."""
        return {**self._first.maps(forward, classes), **self._second.maps(forward, classes)}
