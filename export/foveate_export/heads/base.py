"""What every kind of head offers, and how the layer behind the logits is found."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from foveate_export.errors import UnsupportedHeadError
from foveate_export.taps import Call, Tap


class Head(ABC):
    """The way from the activations of one layer to the logits.

    Holds modules of the classifier, never copies of their weights, so that the
    exported graph holds each weight once.
    """

    activations: Tap
    """The tensor that the maps weigh: float [N, C, h, w]."""

    size: tuple[int, int]
    """The height and width of the maps in cells."""

    methods: tuple[str, ...]
    """The methods that `maps` computes, the default first."""

    @classmethod
    @abstractmethod
    def find(cls, logits: Tensor, calls: Sequence[Call]) -> Self:
        """Recognise this kind of head in a forward pass.

        Raises:
            UnsupportedHeadError: the head is of another kind; says how it differs.
        """

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The tensors of the forward pass that `maps` needs."""
        return (self.activations,)

    @abstractmethod
    def maps(self, tensors: Mapping[Tap, Tensor], classes: Tensor) -> dict[str, Tensor]:
        """Compute the maps, in a way that the exporter can trace.

        Args:
            tensors: the tensors at `taps`.
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


def last_layer(logits: Tensor, calls: Sequence[Call]) -> LastLayer:
    """Return the layer whose output is `logits`, up to the shape.

    Raises:
        UnsupportedHeadError: another kind of layer returns them.
    """
    for call in reversed(calls):
        if call.input is None or call.output is None or call.output.numel() != logits.numel():
            continue
        if not torch.equal(call.output.reshape(logits.shape), logits):
            continue
        module = call.module
        if isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        ):
            return LastLayer(call.path, module, call.input)
    raise UnsupportedHeadError("no linear layer returns the logits")
