"""What a network knows of a picture before its last layer judges: the penultimate features."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from foveate_train.errors import SettingsError


def head_of(module: nn.Module, image: torch.Tensor, classes: int) -> str:
    """Return the path of the layer that makes the logits: the last with an output a class.

    Args:
        module: the network, in evaluation mode; it runs once.
        image: its input, [1, C, H, W].
        classes: how many there are.

    Raises:
        SettingsError: no linear layer and no convolution has so many outputs.
    """
    called: list[str] = []
    with ExitStack() as stack, torch.no_grad():
        for name, part in module.named_modules():
            if isinstance(part, nn.Linear | nn.Conv2d) and part.weight.shape[0] == classes:
                hook = part.register_forward_hook(lambda *_, name=name: called.append(name))
                stack.enter_context(hook)
        module(image)
    if not called:
        raise SettingsError(f"the network has no layer of {classes} outputs, one a class")
    return called[-1]


@contextmanager
def penultimate(module: nn.Module, head: str) -> Iterator[list[torch.Tensor]]:
    """Record what the head is given within the block, float32 [N, features] a call.

    Maps [N, C, h, w] are averaged over their places, and tokens [N, T, C] over the tokens.
    """
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        values = given[0].detach()
        if values.ndim == 4:
            linear = isinstance(module.get_submodule(head), nn.Linear)
            values = values.mean((1, 2) if linear else (2, 3))
        elif values.ndim == 3:
            values = values.mean(1)
        seen.append(values.float().cpu())

    with module.get_submodule(head).register_forward_pre_hook(keep):
        yield seen
