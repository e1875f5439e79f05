"""Data sets that are small enough to stay in memory."""

import hashlib
from collections.abc import Iterator
from functools import cached_property

import torch
from torch.nn import functional

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.data.batches import Batch, shares
from foveate_train.data.draws import generator

_EVALUATED_AT_ONCE = 500


class InMemory:
    """Pictures in memory, for a network of one input specification.

    Args:
        images: uint8 [N, channels, height, width], of the size that `spec` says.
        labels: int64 [N].
        spec: how the network wants them normalised.
        shift: in training each picture is moved by up to this many pixels each way.
    """

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, spec: InputSpec, *, shift: int = 0
    ) -> None:
        self.images = images
        self.labels = labels
        self.spec = spec
        self._shift = shift

    @cached_property
    def digest(self) -> str:
        """The identity of pictures and labels: their shapes, pixels and numbers."""
        state = hashlib.sha256()
        for tensor in (self.images, self.labels):
            array = tensor.contiguous().numpy()
            state.update(f"{array.dtype.str}{array.shape}".encode())
            state.update(array.data)
        return f"sha256:{state.hexdigest()}"

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    def epoch(self, seed: int, epoch: int, batch_size: int, *, start: int = 0) -> Iterator[Batch]:
        """Give one epoch's batches from number `start` on, shuffled and shifted."""
        for number, chosen, share in shares(len(self), batch_size, seed, epoch, start):
            moved = shifted(self.images[chosen], self._shift, generator(seed, epoch, number))
            images = normalise(moved[share], self.spec)
            yield Batch(images, self.labels[chosen[share]], len(chosen))

    def all(self) -> Iterator[Batch]:
        """Give every picture once, as it is, in order."""
        for images, labels in zip(
            torch.split(self.images, _EVALUATED_AT_ONCE),
            torch.split(self.labels, _EVALUATED_AT_ONCE),
            strict=True,
        ):
            yield Batch(normalise(images, self.spec), labels, len(labels))


def normalise(images: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """Turn uint8 [N, channels, height, width] into a network's float32 input."""
    mean = torch.tensor(spec.mean).view(-1, 1, 1)
    std = torch.tensor(spec.std).view(-1, 1, 1)
    scaled = images.to(torch.float32).div_(255).sub_(mean).div_(std)
    return scaled.contiguous(memory_format=torch.channels_last)


def shifted(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Move each picture by its own random number of pixels, at most `most` each way.

    What moves in from outside is 0. `images` are [N, channels, height, width].
    """
    if most == 0:
        return images
    count, _, height, width = images.shape
    padded = functional.pad(images, (most,) * 4)
    corner = torch.randint(0, 2 * most + 1, (2, count, 1), generator=generator)
    rows = (corner[0] + torch.arange(height))[:, None, :, None]
    columns = (corner[1] + torch.arange(width))[:, None, None, :]
    picture = torch.arange(count)[:, None, None, None]
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return padded[picture, channel, rows, columns]
