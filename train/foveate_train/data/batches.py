"""What training reads: batches in the order of an epoch, and everything once."""

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch

from foveate_train import distributed
from foveate_train.data.draws import generator


class Batch(NamedTuple):
    """A batch, or one process's share of it.

    Attributes:
        images: float32 [N, channels, height, width], normalised.
        labels: int64 [N].
        total: how many pictures all processes together have of this batch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    total: int


class Data(Protocol):
    """A data set that gives batches."""

    @property
    def digest(self) -> str:
        """The identity of the data, `sha256:<hex>`."""

    def __len__(self) -> int:
        """Return the number of pictures."""

    def epoch(self, seed: int, epoch: int, batch_size: int, *, start: int = 0) -> Iterator[Batch]:
        """Give one epoch's batches from number `start` on, shuffled and augmented."""

    def all(self) -> Iterator[Batch]:
        """Give every picture once, as it is, in order."""


def steps(count: int, batch_size: int) -> int:
    """Return how many batches an epoch of `count` pictures has."""
    return math.ceil(count / batch_size)


def shares(
    count: int, batch_size: int, seed: int, epoch: int, start: int
) -> Iterator[tuple[int, torch.Tensor, slice]]:
    """Give the number and pictures of each batch of an epoch, and this process's part of them.

    Batches differ by one picture at most: a last batch of one would upset batch
    normalisation. The order is drawn from the seed and the epoch.
    """
    order = torch.randperm(count, generator=generator(seed, epoch))
    whole = order.tensor_split(steps(count, batch_size))
    for number, chosen in enumerate(whole[start:], start):
        begin, end = (
            len(chosen) * rank // distributed.world()
            for rank in (distributed.rank(), distributed.rank() + 1)
        )
        yield number, chosen, slice(begin, end)
