"""The data sets that `benchmarks.finetuning` fine-tunes on, written as image folders.

Photographs of three coarse classes (of FOVEATE_IMAGENET_DIR and FOVEATE_CALIBRATION_DIR, one
photograph for each of 200 classes of ImageNet), digits of MNIST, and spectrograms of synthesised
sounds. A seed draws which pictures are trained on and which are judged.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import signal

from foveate_train.data import mnist

PHOTOGRAPHS = ("FOVEATE_IMAGENET_DIR", "FOVEATE_CALIBRATION_DIR")
# Ranges of WordNet's numbers, both ends included; the rest (food, nature) is left out.
COARSE = {
    "mammal": (("n01882714", "n01882714"), ("n02077923", "n02128925"), ("n02325366", "n02504013")),
    "other animal": (
        ("n01440764", "n01860187"),
        ("n01924916", "n02056570"),
        ("n02165105", "n02281406"),
        ("n02526121", "n02641379"),
    ),
    "thing": (("n02669723", "n04613696"),),
}
# Of the scarcest class there are 37 photographs, of which 12 are judged.
_TRAINED, _JUDGED = 25, 12

Pictures = Iterator[tuple[str, Image.Image]]
"""The class and the picture, one after another."""


@dataclass(frozen=True)
class Set:
    """A data set: what it holds, and what draws its two parts from a seed."""

    title: str
    training: Callable[[Generator], Pictures]
    judged: Callable[[Generator], Pictures]


def write(pictures: Pictures, folder: Path) -> Path:
    """Write pictures as PNG files, one folder for each class; return the folder."""
    for number, (name, picture) in enumerate(pictures):
        (folder / name).mkdir(parents=True, exist_ok=True)
        picture.save(folder / name / f"{number:05}.png")
    return folder


def photographs(
    generator: Generator, *, counts: Mapping[str, int], distinct: int = _TRAINED
) -> Pictures:
    """Give photographs to train on: each whole, and then parts of them until there are enough."""
    for name, files in _drawn(generator).items():
        for number in range(counts.get(name, 0)):
            with Image.open(files[number % distinct]) as opened:
                picture = opened.convert("RGB")
            yield name, picture if number < distinct else _part(picture, generator)


def other_photographs(generator: Generator, *, names: Mapping[str, int]) -> Pictures:
    """Give the photographs of each class that no training takes, whole."""
    for name, files in _drawn(generator).items():
        for file in files[-names.get(name, 0) :] if name in names else ():
            with Image.open(file) as opened:
                yield name, opened.convert("RGB")


def _drawn(generator: Generator) -> dict[str, list[Path]]:
    """Return each coarse class's photographs in an order that the generator draws."""
    files = sorted(
        file for name in PHOTOGRAPHS for file in Path(os.environ[name]).glob("n*/*.JPEG")
    )
    drawn = {}
    for name, ranges in COARSE.items():
        own = [file for file in files if any(a <= file.parent.name <= b for a, b in ranges)]
        drawn[name] = [own[index] for index in generator.permutation(len(own))]
    return drawn


def _part(picture: Image.Image, generator: Generator) -> Image.Image:
    """Return a rectangle of three quarters of each side, somewhere in a picture."""
    size = np.array(picture.size)
    part = size * 3 // 4
    left, top = generator.integers(0, size - part + 1)
    return picture.crop((left, top, left + part[0], top + part[1]))


def digits(generator: Generator, *, split: mnist.Split, count: int) -> Pictures:
    """Give `count` of each digit."""
    images, labels = mnist.load(split)
    for digit in range(10):
        for index in generator.choice(np.flatnonzero(labels == digit), count, replace=False):
            yield str(digit), Image.fromarray(images[index])


_RATE, _SECONDS = 8000, 1.5


def _chirp(time: NDArray[np.float64], generator: Generator, *, rises: bool) -> NDArray[np.float64]:
    low, high = generator.uniform(300, 900), generator.uniform(1500, 3200)
    begin, end = (low, high) if rises else (high, low)
    return signal.chirp(time, begin, _SECONDS, end)


def _vibrato(time: NDArray[np.float64], generator: Generator) -> NDArray[np.float64]:
    pitch, depth, speed = (generator.uniform(*ends) for ends in ((600, 2400), (80, 250), (3, 8)))
    return np.sin(2 * np.pi * pitch * time + depth / speed * np.sin(2 * np.pi * speed * time))


def _tremolo(time: NDArray[np.float64], generator: Generator) -> NDArray[np.float64]:
    pitch, speed = generator.uniform(600, 2400), generator.uniform(3, 8)
    return np.sin(2 * np.pi * pitch * time) * (1 + np.sin(2 * np.pi * speed * time))


def _harmonics(time: NDArray[np.float64], generator: Generator) -> NDArray[np.float64]:
    pitch = generator.uniform(200, 700)
    return sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 6))


def _clicks(time: NDArray[np.float64], generator: Generator) -> NDArray[np.float64]:
    every = generator.uniform(0.08, 0.25)
    return 4.0 * (np.mod(time + generator.uniform(0, every), every) < 0.003)


SOUNDS = {
    "rising": partial(_chirp, rises=True),
    "falling": partial(_chirp, rises=False),
    "vibrato": _vibrato,
    "tremolo": _tremolo,
    "harmonics": _harmonics,
    "clicks": _clicks,
}
"""What makes each kind of sound from the seconds and a generator."""


def spectrograms(generator: Generator, *, count: int) -> Pictures:
    """Give `count` spectrograms of each kind of sound in noise, grey, low frequencies below."""
    time = np.arange(int(_RATE * _SECONDS)) / _RATE
    for name, sound in SOUNDS.items():
        for _ in range(count):
            heard = sound(time, generator) * generator.uniform(0.15, 0.6)
            heard = heard + generator.normal(size=len(time)) * generator.uniform(0.2, 0.8)
            _, _, power = signal.spectrogram(heard, _RATE, nperseg=256, noverlap=160)
            decibels = 10 * np.log10(power[::-1] + 1e-10)
            scaled = np.interp(decibels, (decibels.max() - 40, decibels.max()), (0, 255))
            yield name, Image.fromarray(scaled.astype(np.uint8)).resize((160, 128))


def _photographs(count: int) -> Set:
    return Set(
        f"photographs, 3 coarse classes, {count} a class",
        partial(photographs, counts=dict.fromkeys(COARSE, count)),
        partial(other_photographs, names=dict.fromkeys(COARSE, _JUDGED)),
    )


def _digits(count: int) -> Set:
    return Set(
        f"digits, {count} a class",
        partial(digits, split="train", count=count),
        partial(digits, split="test", count=20),
    )


SETS = {
    "photographs-10": _photographs(10),
    "photographs-30": _photographs(30),
    "photographs-100": _photographs(100),
    "digits-10": _digits(10),
    "digits-100": _digits(100),
    "spectrograms-30": Set(
        "spectrograms of synthesised sounds, 6 classes, 30 a class",
        partial(spectrograms, count=30),
        partial(spectrograms, count=50),
    ),
    "nine-to-one": Set(
        "photographs, 90 things and 10 mammals",
        partial(photographs, counts={"thing": 90, "mammal": 10}, distinct=60),
        partial(other_photographs, names={"thing": 30, "mammal": 30}),
    ),
}
