"""What a classifier is: a network with all that is needed to use it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from pydantic import ConfigDict
from torch import nn

Argument = str | int | float | bool | None
"""The value of a classifier's argument; these are what JSON can hold."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How a picture becomes a network's input.

    The shorter side is resized to `resize` pixels with `interpolation`
    (antialiased), the centre of `height` x `width` pixels is cropped, and the
    values, on the scale from 0 to 1, are normalised with `mean` and `std`,
    one value a channel.

    Raises:
        ValueError: if the fields contradict each other.
    """

    # Read by pydantic where a specification stands in a checkpoint's JSON.
    __pydantic_config__ = ConfigDict(extra="forbid")

    height: int
    width: int
    channels: int
    resize: int
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                count = len(getattr(self, name))
                raise ValueError(f"{name} has {count} values for {self.channels} channels")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} has a value that is not above 0")
        if self.resize < max(self.height, self.width):
            raise ValueError(f"resize {self.resize} is below the crop {self.height}x{self.width}")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(
                f"interpolation {self.interpolation!r} is none of {get_args(Interpolation)}"
            )


Criterion = Callable[[torch.Tensor], torch.Tensor]
"""The loss of logits [N, classes], as a scalar."""


def loss_of_logits(output: torch.Tensor, criterion: Criterion) -> torch.Tensor:
    """Return the loss of a network whose output in training is its logits."""
    return criterion(output)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network with its input specification and labels.

    Attributes:
        name: the name in the registry, such as `foveate:lenet5`.
        arguments: what the network was built with.
        module: maps float32 [N, channels, height, width], normalised, to
            logits [N, len(labels)].
        input: how a picture becomes the network's input.
        labels: the name of each class, by index.
        loss: what training makes of the module's output in training mode and of a
            criterion.
    """

    name: str
    arguments: dict[str, Argument]
    module: nn.Module
    input: InputSpec
    labels: tuple[str, ...]
    loss: Callable[[Any, Criterion], torch.Tensor] = loss_of_logits
