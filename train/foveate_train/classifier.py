"""What a classifier is: a network with all that is needed to use it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from pydantic import ConfigDict
from torch import nn

Argument = str | int | float | bool | None
"""The value of a classifier's argument; these are what JSON can hold."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Fit = Literal["crop", "squash", "pad"]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How a picture becomes a network's input.

    A picture of `height` x `width` pixels is taken as it is. Any other is resized
    with `interpolation` (antialiased) as `fit` says, and its centre of `height` x
    `width` pixels is taken:

    - `crop`: its shorter side to `resize`, or to more where it would not cover the input.
    - `squash`: both sides to those of `frame`; the aspect ratio is not kept.
    - `pad`: to fit into `frame`; what the picture leaves free of the input has the
      colour `fill`.

    The values, on the scale from 0 to 1, are normalised with `mean` and `std`. These
    and `fill` have one value a channel; an empty `fill` stands for `mean`.

    Raises:
        ValueError: if the fields contradict each other.
    """

    # Read by pydantic where a specification stands in a checkpoint's JSON.
    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    height: int
    width: int
    channels: int
    resize: int
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit = "crop"
    fill: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1")
        for name in ("mean", "std", "fill"):
            count = len(getattr(self, name))
            if count != self.channels and (count or name != "fill"):
                raise ValueError(f"{name} has {count} values for {self.channels} channels")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} has a value that is not above 0")
        if fault := off_scale(self.mean, self.std, self.fill):
            raise ValueError(fault)
        if self.fill and self.fit != "pad":
            raise ValueError(f"fill is the colour that pad adds, and fit is {self.fit!r}")
        shorter = min(self.height, self.width)
        if self.resize < shorter:
            raise ValueError(f"resize {self.resize} is below {shorter}, the input's shorter side")
        for name, kind in (("interpolation", Interpolation), ("fit", Fit)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {get_args(kind)}")

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width of the input, enlarged until its shorter side is `resize`."""
        shorter = min(self.height, self.width)
        return (
            round(self.height * self.resize / shorter),
            round(self.width * self.resize / shorter),
        )

    @property
    def border(self) -> tuple[int, ...]:
        """The colour that pad adds, in levels from 0 to 255."""
        return tuple(round(255 * value) for value in self.fill or self.mean)


def off_scale(mean: Sequence[float], std: Sequence[float], fill: Sequence[float]) -> str:
    """Say which of the values are not on the scale from 0 to 1, and what was probably meant."""
    faults = []
    for name, values in (("mean", mean), ("std", std), ("fill", fill)):
        largest = max(map(abs, values), default=0)
        scale = 1 if largest <= 1 else 255 if largest <= 255 else 65535
        if name == "std" and largest == 1 < max(mean):
            scale = 255  # not scaled, beside a mean on the scale to 255
        meant = [float(f"{abs(value) / scale:.4g}") for value in values]
        if scale > 1:
            faults.append(
                f"{name} {list(values)} is on the scale from 0 to {scale}; "
                f"on the scale from 0 to 1 it is {meant}"
            )
        elif min(values, default=0) < 0:
            faults.append(f"{name} {list(values)} is below 0; {meant} was probably meant")
    return "; ".join(faults)


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
