"""The stages that a network begins with: a chain, in which each takes what the one before it made.

    names = stages(module, images)          # ["conv1", "bn1", ..., "layer4.1"]
    made = first(module, names[:8], images)
    Rest(module, names[:8])(made)           # the network's logits

What the first stages make of pictures can be kept, and the rest be trained on it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn


class _Call(NamedTuple):
    """What a module was given and what it made, where both are one tensor."""

    given: torch.Tensor
    made: torch.Tensor


@torch.inference_mode()
def stages(module: nn.Module, images: torch.Tensor) -> list[str]:
    """Return the names of the stages, from the network's input on as far as the chain goes.

    Args:
        module: in evaluation mode; it runs once.
        images: its input.
    """
    calls: dict[str, list[_Call | None]] = {}

    def record(name: str, _: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        single = len(given) == 1 and all(isinstance(each, torch.Tensor) for each in (*given, made))
        calls.setdefault(name, []).append(_Call(given[0], made) if single else None)

    with ExitStack() as stack:
        for name, part in module.named_modules():
            stack.enter_context(part.register_forward_hook(partial(record, name)))
        module(images)
    # A module that is called twice is no stage.
    once = {name: made[0] for name, made in calls.items() if len(made) == 1 and made[0]}
    return [name for name, _ in _chain("", module, images, once)]


def _chain(
    name: str, module: nn.Module, given: torch.Tensor, calls: dict[str, _Call]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Give the stages inside a module, with what each made, as long as one follows the other."""
    for child, part in module.named_children():
        path = f"{name}.{child}".removeprefix(".")
        call = calls.get(path)
        if call is None or call.given is not given:
            return
        inner = list(_chain(path, part, given, calls)) if isinstance(part, nn.Sequential) else []
        yield from inner if inner and inner[-1][1] is call.made else [(path, call.made)]
        given = call.made


def first(module: nn.Module, names: Sequence[str], images: torch.Tensor) -> torch.Tensor:
    """Return what a network's first stages make of its input."""
    for name in names:
        images = module.get_submodule(name)(images)
    return images


class Rest(nn.Module):
    """A network without its first stages: it takes what they made.

    Args:
        module: the whole network, which stays whole.
        names: of the first stages.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self._names = tuple(names)

    def forward(self, made: torch.Tensor) -> Any:
        """Run the network with its first stages passing on what they are given."""
        passed = [self.module.get_submodule(name) for name in self._names]
        for stage in passed:
            stage.forward = _as_it_is
        try:
            return self.module(made)
        finally:
            for stage in passed:
                del stage.forward


def _as_it_is(made: torch.Tensor) -> torch.Tensor:
    return made
