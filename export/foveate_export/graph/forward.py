"""Forward passes whose inner tensors can be read: what the explanations are computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from foveate_export.anatomy.taps import Tap, as_maps, tapped


@dataclass(frozen=True)
class Forward:
    """What one forward pass left behind.

    Attributes:
        logits: float [N, classes].
        tensors: the maps at the network's taps, float [N, C, h, w].
        module: holds the parameters that took part.
    """

    logits: Tensor
    tensors: Mapping[Tap, Tensor]
    module: nn.Module

    def parameter(self, path: str) -> Tensor:
        """Return the parameter at `path`, such as `fc.weight`.

        Read here and not from the classifier, it is the one tensor that the
        exporter traces, and the graph holds it once.
        """
        return self.module.get_parameter(path)


class HookedNetwork(nn.Module):
    """A classifier that runs as it is, with hooks that read out its tensors."""

    def __init__(self, module: nn.Module, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.module = module
        self._taps = tuple(taps)

    def forward(self, pixels: Tensor) -> Forward:
        """Classify `pixels`, normalised, float [N, C, H, W]."""
        with tapped(self.module, self._taps) as tensors:
            logits: Tensor = self.module(pixels)
        return Forward(logits, as_maps(tensors), self.module)
