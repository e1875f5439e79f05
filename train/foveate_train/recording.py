"""What the layers of a network give while it computes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def recorded(module: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Record what layers give within the block, by their paths; of several calls, the last.

    What follows gets a copy, so that an operation that writes over its input
    leaves the record as it was; gradients by the record are those by the layer's output.
    """
    seen: dict[str, torch.Tensor] = {}

    def keep(layer: str, output: object) -> torch.Tensor | None:
        if not isinstance(output, torch.Tensor):
            return None
        seen[layer] = output
        return output.clone()

    handles = [
        module.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: keep(layer, output)
        )
        for layer in layers
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
