"""What the first stages of a network made of pictures, kept in memory for training the rest."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from foveate_train.data.batches import Batch, shares
from foveate_train.stages import first

_EVALUATED_AT_ONCE = 64


class Kept:
    """Views of pictures, each as the first stages of a network left it.

    Args:
        views: float16 [views, N, ...]; the first is of the pictures as they are,
            the others of pictures changed at random.
        labels: int64 [N].
        digest: the identity of the pictures.
        passes: how often an epoch sees every picture, each time another view.
    """

    def __init__(
        self, views: torch.Tensor, labels: torch.Tensor, digest: str, *, passes: int = 1
    ) -> None:
        self.views = views
        self.labels = labels
        self.digest = digest
        self._passes = passes

    def __len__(self) -> int:
        """Return how many views an epoch sees."""
        return len(self.labels) * self._passes

    def epoch(self, seed: int, epoch: int, batch_size: int, *, start: int = 0) -> Iterator[Batch]:
        """Give one epoch's batches from number `start` on, shuffled."""
        for _, chosen, share in shares(len(self), batch_size, seed, epoch, start):
            own = chosen[share]
            picture = own % len(self.labels)
            number = own // len(self.labels) + (epoch - 1) * self._passes
            # In one pass the pictures show different views.
            view = (number + picture) % len(self.views)
            yield Batch(_wide(self.views[view, picture]), self.labels[picture], len(chosen))

    def all(self) -> Iterator[Batch]:
        """Give every picture once, as it is, in order."""
        for made, labels in zip(
            torch.split(self.views[0], _EVALUATED_AT_ONCE),
            torch.split(self.labels, _EVALUATED_AT_ONCE),
            strict=True,
        ):
            yield Batch(_wide(made), labels, len(labels))


@torch.no_grad()
def made(module: nn.Module, names: Sequence[str], batches: Iterable[Batch]) -> torch.Tensor:
    """Return what a network's first stages make of pictures, float16 [N, ...], on the processor."""
    device = next(module.parameters()).device
    return torch.cat([first(module, names, b.images.to(device)).half().cpu() for b in batches])


def _wide(made: torch.Tensor) -> torch.Tensor:
    """Return float32, channels last where there are maps."""
    layout = torch.channels_last if made.ndim == 4 else torch.contiguous_format
    return made.float().contiguous(memory_format=layout)
