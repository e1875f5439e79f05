"""Image folders: one folder a class, with pictures of any size in it or below it."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from foveate_train.classifier import InputSpec
from foveate_train.data.batches import Batch, shares
from foveate_train.data.draws import derive, generator
from foveate_train.data.preprocess import MODES, RANGELESS, preprocess, upright
from foveate_train.errors import DataError
from foveate_train.settings import Settings

Corrupt = Literal["fail", "skip"]

_EVALUATED_AT_ONCE = 64
_POLICIES = {
    "none": v2.Identity,
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
    "augmix": v2.AugMix,
}


@dataclass(frozen=True)
class Photographs:
    """The pictures of a folder, listed and looked through.

    Attributes:
        files: the pictures, in the order of their paths.
        labels: the class of each, an index into `classes`.
        digests: the SHA-256 of each file.
        classes: the names of the folders, sorted.
        corrupt: the files left out, with what is wrong with them.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    digests: tuple[str, ...]
    classes: tuple[str, ...]
    corrupt: dict[Path, str]

    @cached_property
    def digest(self) -> str:
        """The identity of pictures and classes, wherever the folder lies."""
        state = hashlib.sha256()
        for digest, label in zip(self.digests, self.labels, strict=True):
            state.update(f"{digest} {self.classes[label]}\n".encode())
        return f"sha256:{state.hexdigest()}"

    def split(self, share: float, seed: int) -> tuple[Self, Self]:
        """Return two parts, the second with this share of every class, rounded.

        Raises:
            DataError: a class has too few pictures to have some in both.
        """
        held: set[int] = set()
        for label, name in enumerate(self.classes):
            own = [index for index, other in enumerate(self.labels) if other == label]
            count = round(share * len(own))
            if not 0 < count < len(own):
                raise DataError(
                    f"class {name} has {len(own)} pictures, which a share of {share:g} leaves "
                    "none to train on or none to validate on"
                )
            order = torch.randperm(len(own), generator=generator(seed, label))
            held.update(own[index] for index in order[:count].tolist())
        everything = range(len(self.files))
        return self._part([i for i in everything if i not in held]), self._part(sorted(held))

    def _part(self, chosen: Sequence[int]) -> Self:
        return type(self)(
            files=tuple(self.files[index] for index in chosen),
            labels=tuple(self.labels[index] for index in chosen),
            digests=tuple(self.digests[index] for index in chosen),
            classes=self.classes,
            corrupt={},
        )


def scan(folder: Path, corrupt: Corrupt, classes: Sequence[str] | None = None) -> Photographs:
    """List an image folder, and decode every picture once to see that it is whole.

    Args:
        folder: holds one folder for each class.
        corrupt: whether a file that cannot be decoded is left out or ends this.
        classes: what the classes have to be; None for whatever they are.

    Raises:
        DataError: there is no such folder, it has no class folders or others than
            `classes`, one of them has no pictures, or a picture is corrupt.
    """
    try:
        found = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from error
    if not found:
        raise DataError(f"{folder}: has no folders; each class is a folder of pictures")
    if classes is not None and found != tuple(classes):
        differing = ", ".join(sorted(set(found) ^ set(classes)))
        raise DataError(
            f"{folder}: has {len(found)} classes, and {len(classes)} are wanted; "
            f"in one of the two alone: {differing}"
        )
    listed = [
        (file, label)
        for label, name in enumerate(found)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in IMG_EXTENSIONS and file.is_file()
    ]
    with ThreadPoolExecutor() as pool:
        looked = list(pool.map(_look, (file for file, _ in listed)))
    damaged = {file: flaw for (file, _), (_, flaw) in zip(listed, looked, strict=True) if flaw}
    if damaged and corrupt == "fail":
        file, flaw = next(iter(damaged.items()))
        raise DataError(
            f"{file}: {flaw}; {len(damaged)} of {len(listed)} pictures are corrupt, "
            "which --corrupt skip leaves out"
        )
    whole = [
        (file, label, digest)
        for (file, label), (digest, flaw) in zip(listed, looked, strict=True)
        if not flaw
    ]
    empty = sorted(set(range(len(found))) - {label for _, label, _ in whole})
    if empty:
        raise DataError(f"{folder / found[empty[0]]}: has no pictures")
    files, labels, digests = zip(*whole, strict=True)
    return Photographs(files, labels, digests, found, damaged)


class FolderData:
    """The pictures of a folder, decoded as they are needed, for a network of one input.

    Args:
        photographs: which pictures.
        spec: what the network takes.
        settings: how they are changed at random in training.
        workers: processes that decode; 0 decodes in this one.
    """

    def __init__(
        self, photographs: Photographs, spec: InputSpec, settings: Settings, *, workers: int
    ) -> None:
        self.photographs = photographs
        self._spec = spec
        self._training = _Decoded(photographs, _augmentation(spec, settings), spec)
        self._as_is = _Decoded(photographs, None, spec)
        self._workers = workers

    @property
    def digest(self) -> str:
        """The identity of the pictures and their classes."""
        return self.photographs.digest

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.photographs.files)

    def epoch(self, seed: int, epoch: int, batch_size: int, *, start: int = 0) -> Iterator[Batch]:
        """Give one epoch's batches from number `start` on, shuffled and augmented.

        What is drawn for a picture depends on the seed, the epoch and the picture,
        not on the worker that decodes it.
        """
        batches = list(shares(len(self), batch_size, seed, epoch, start))
        wanted = [
            [(index, derive(seed, epoch, index)) for index in chosen[share].tolist()]
            for _, chosen, share in batches
        ]
        loaded = self._load(self._training, wanted)
        for (images, labels), (_, chosen, _) in zip(loaded, batches, strict=True):
            yield Batch(images, labels, len(chosen))

    def all(self) -> Iterator[Batch]:
        """Give every picture once, resized and cropped as in serving, in order."""
        indices = torch.split(torch.arange(len(self)), _EVALUATED_AT_ONCE)
        for images, labels in self._load(
            self._as_is, [[(index, 0) for index in part.tolist()] for part in indices]
        ):
            yield Batch(images, labels, len(labels))

    def _load(
        self, decoded: "_Decoded", batches: list[list[tuple[int, int]]]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        loader = DataLoader(
            decoded,
            batch_sampler=batches,
            num_workers=self._workers,
            pin_memory=torch.cuda.is_available(),
        )
        for images, labels in loader:
            yield images.contiguous(memory_format=torch.channels_last), labels


class _Decoded(Dataset[tuple[torch.Tensor, int]]):
    """Pictures by index and the seed of their random changes."""

    def __init__(
        self, photographs: Photographs, augment: v2.Transform | None, spec: InputSpec
    ) -> None:
        self._photographs = photographs
        self._augment = augment
        self._spec = spec

    def __getitem__(self, wanted: tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, seed = wanted
        with Image.open(self._photographs.files[index]) as picture:
            if self._augment is None:
                image = preprocess(picture, self._spec)
            else:
                torch.manual_seed(seed)
                image = self._augment(upright(picture, self._spec.channels))
        return image, self._photographs.labels[index]


def _augmentation(spec: InputSpec, settings: Settings) -> v2.Transform:
    """Return the random changes of a training picture, and its normalisation."""
    if spec.channels not in MODES:
        raise DataError(f"a picture has 1, 3 or 4 channels, and the network takes {spec.channels}")
    if spec.channels == 4 and settings.policy != "none":
        raise DataError(f"--policy {settings.policy} is for 1 or 3 channels; the network takes 4")
    aspect = spec.width / spec.height
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                (spec.height, spec.width),
                scale=(settings.crop, 1),
                ratio=(3 / 4 * aspect, 4 / 3 * aspect),
                interpolation=v2.InterpolationMode(spec.interpolation),
                antialias=True,
            ),
            v2.RandomHorizontalFlip(0.5 if settings.flip else 0),
            _POLICIES[settings.policy](),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(spec.mean), list(spec.std)),
            v2.RandomErasing(settings.erase),
        ]
    )


def _look(file: Path) -> tuple[str, str]:
    """Return a file's SHA-256, and what is wrong with its picture, if anything."""
    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            # A JPEG is read at an eighth of its size, and to its end.
            picture.draft("RGB", (1, 1))
            picture.load()
            if picture.mode == "F":
                return "", RANGELESS
    except UnidentifiedImageError:
        return "", "is no picture"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return "", str(error)
    return hashlib.sha256(content).hexdigest(), ""
