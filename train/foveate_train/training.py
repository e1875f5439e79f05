"""The training loop.

    settings = Settings(epochs=2, seed=0)
    for step in train(classifier, images, labels, settings):
        print(step.number, float(step.loss))
    print(evaluate(classifier, test_images, test_labels))

`train` is a generator: it does one optimiser step at a time and hands over what
happened, so whoever consumes it reports, evaluates or stops as it likes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional

from foveate_train.classifier import Classifier, InputSpec


class Settings(BaseModel):
    """Every setting of a training run, with its limits.

    The defaults are those at which `foveate:convnet4` passes 99 % on MNIST's
    test set after one epoch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=2)] = 128
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 5e-3
    """The peak of the one-cycle schedule (Smith & Topin, Super-Convergence, 2018)."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    warm_up: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The share of all steps over which the learning rate rises to its peak."""
    shift: Annotated[int, Field(ge=0)] = 1
    """Each training picture is moved by up to this many pixels each way."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        number: from 1, over all epochs.
        total: how many steps the run has.
        epoch: from 1.
        ends_epoch: whether this was the epoch's last step.
        images: how many pictures the step used.
        loss: the mean cross-entropy over them, a scalar still on its device.
    """

    number: int
    total: int
    epoch: int
    ends_epoch: bool
    images: int
    loss: torch.Tensor


def train(
    classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, settings: Settings
) -> Iterator[Step]:
    """Train a classifier's module in place.

    AdamW with a one-cycle schedule, channels-last, and bfloat16 autocast where
    the processor computes it natively. The order of the pictures, their shifts
    and the network's own random draws come from the seed; the same seed on the
    same machine with as many threads gives the same losses.

    Args:
        classifier: its module is put into training mode at every step.
        images: uint8 [N, channels, height, width], kept in memory.
        labels: int64 [N].
        settings: the run's settings.

    Yields:
        what each step did, after it is done.
    """
    module = classifier.module.to(memory_format=torch.channels_last)
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    steps = math.ceil(len(images) / settings.batch_size)
    total = steps * settings.epochs
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=total, pct_start=settings.warm_up
    )
    autocast = native_bfloat16()
    number = 0
    for epoch in range(1, settings.epochs + 1):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order.tensor_split(steps):
            batch = shifted(images[chosen], settings.shift, generator)
            module.train()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = module(normalise(batch, classifier.input))
                loss = functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            number += 1
            yield Step(number, total, epoch, number % steps == 0, len(chosen), loss.detach())


@torch.inference_mode()
def evaluate(
    classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, *, batch_size: int = 500
) -> float:
    """Return the share of pictures whose highest logit is their label's, in float32.

    `images` are uint8 [N, channels, height, width], `labels` int64 [N]. The
    module is left in evaluation mode.
    """
    classifier.module.eval()
    right = 0
    for batch, truth in zip(
        torch.split(images, batch_size), torch.split(labels, batch_size), strict=True
    ):
        logits = classifier.module(normalise(batch, classifier.input))
        right += int((logits.argmax(1) == truth).sum())
    return right / len(images)


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


def native_bfloat16() -> bool:
    """Tell whether the processor multiplies bfloat16 itself; where it does not, it is slow."""
    capabilities = torch.cpu.get_capabilities()
    # The names are those of x86 and of Arm.
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
