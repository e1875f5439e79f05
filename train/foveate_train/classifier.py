"""What a classifier is: a network with all that is needed to use it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foveate_runtime.bundle.manifest import InputSpec

Argument = str | int | float | bool | None
"""The value of a classifier's argument; these are what JSON can hold."""

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
        assumptions: what was assumed where nothing said it, by what it concerns.
    """

    name: str
    arguments: dict[str, Argument]
    module: nn.Module
    input: InputSpec
    labels: tuple[str, ...]
    loss: Callable[[Any, Criterion], torch.Tensor] = loss_of_logits
    assumptions: Mapping[str, str] = field(default_factory=dict)
