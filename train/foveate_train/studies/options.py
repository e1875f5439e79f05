"""The options of every study: where to write, and how much of it to do."""

from pathlib import Path
from typing import Annotated, Literal

import torch

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.data import mnist
from foveate_train.data.memory import InMemory
from foveate_train.errors import SettingsError
from foveate_train.options import As, MachineOptions
from foveate_train.settings import Settings


class StudyOptions(MachineOptions):
    """Repeat a study of the course, most of them on MNIST, and write its page.

    After Ctrl-C the same command goes on from there.

        foveate train study normalisation --epochs 1 --subset 6000 --out normalisation
    """

    study: Annotated[
        Literal[
            "arithmetic",
            "classifiers",
            "features",
            "filters",
            "go",
            "normalisation",
            "patches",
            "residual",
            "speech",
        ],
        As(names=("study",)),
    ]
    """Which one"""
    out: Path | None = None
    """The folder of results, page and pictures. Default: studies/NAME"""
    subset: int | None = None
    """The first N training pictures, positions or words. Default: all"""
    seeds: Annotated[tuple[int, ...], As("N", names=("--seeds", "--seed"), many=True)] = (0,)
    """Each is a run of its own. Default: 0"""
    data: Path | None = None
    """A folder with the IDX files of MNIST"""

    photographs: Path | None = None
    """patches: a folder of photographs, for EfficientNet-Lite0. Default: digits alone"""
    games: Path | None = None
    """go: a folder of game records, .sgf. Default: games of a simple player"""

    @property
    def folder(self) -> Path:
        """The folder of results, page and pictures."""
        return self.out or Path("studies") / self.study

    def settings(self, study: Settings) -> Settings:
        """Return the study's settings with the changes asked for."""
        return Settings.model_validate({**study.model_dump(), **self.given})

    def digits(self, spec: InputSpec, *, shift: int) -> tuple[InMemory, InMemory]:
        """Return MNIST's training and test pictures.

        Of a subset of the training pictures goes a sixth as many test pictures,
        as in the whole set, and at least 200.

        Raises:
            SettingsError: the subset is larger than the set.
            DataError: the files cannot be had.
        """
        images, labels = map(torch.from_numpy, mnist.load("train", self.data))
        self.of(len(images))
        training = InMemory(images[: self.subset, None], labels[: self.subset], spec, shift=shift)
        images, labels = map(torch.from_numpy, mnist.load("test", self.data))
        tested = None if self.subset is None else max(self.subset // 6, 200)
        return training, InMemory(images[:tested, None], labels[:tested], spec)

    def of(self, count: int) -> int:
        """Return how many of so many training pictures are to be taken.

        Raises:
            SettingsError: the subset is larger.
        """
        if self.subset is not None and not 2 <= self.subset <= count:
            raise SettingsError(f"--subset {self.subset} is not within 2 and {count}")
        return self.subset or count
