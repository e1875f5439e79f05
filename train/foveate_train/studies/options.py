"""What every study is told: where to write, and how much of it to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch
from rich.console import Console

from foveate_train.classifier import InputSpec
from foveate_train.data import mnist
from foveate_train.data.memory import InMemory
from foveate_train.errors import SettingsError
from foveate_train.settings import Settings


@dataclass(frozen=True)
class Options:
    """How a study is to be run.

    Attributes:
        out: the folder of its results, page and pictures.
        changed: settings that replace the study's own.
        subset: how many of the training pictures to use; None for all.
        seeds: one run of each variant for every seed.
        device: where to compute.
        data: the folder of MNIST; None for the usual places.
        console: where progress goes.
        stop: set to end after the current step; a study goes on from there.
    """

    out: Path
    changed: Mapping[str, object]
    subset: int | None
    seeds: tuple[int, ...]
    device: torch.device
    data: Path | None
    console: Console
    stop: Event

    def settings(self, study: Settings) -> Settings:
        """Return the study's settings with the changes asked for."""
        return Settings.model_validate({**study.model_dump(), **self.changed})

    def digits(self, spec: InputSpec, *, shift: int) -> tuple[InMemory, InMemory]:
        """Return MNIST's training and test pictures.

        Of a subset of the training pictures goes a sixth as many test pictures,
        as in the whole set, and at least 200.

        Raises:
            SettingsError: the subset is larger than the set.
            DataError: the files cannot be had.
        """
        images, labels = map(torch.from_numpy, mnist.load("train", self.data))
        if self.subset is not None and not 2 <= self.subset <= len(images):
            raise SettingsError(f"subset {self.subset} is not within 2 and {len(images)}")
        training = InMemory(images[: self.subset, None], labels[: self.subset], spec, shift=shift)
        images, labels = map(torch.from_numpy, mnist.load("test", self.data))
        tested = None if self.subset is None else max(self.subset // 6, 200)
        return training, InMemory(images[:tested, None], labels[:tested], spec)
