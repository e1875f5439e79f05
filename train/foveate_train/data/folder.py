"""Image folders: one folder a class, with pictures of any size in it or below it."""

import hashlib
import io
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from foveate_runtime.bundle.manifest import InputSpec
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


class Picture(NamedTuple):
    """A file, its class as an index, and the SHA-256 of its content."""

    file: Path
    label: int
    digest: str


@dataclass(frozen=True)
class Photographs:
    """The pictures of a folder, listed and looked through.

    Attributes:
        pictures: in the order of their paths.
        classes: the names of the folders, sorted.
        corrupt: the files left out, with what is wrong with them.
    """

    pictures: tuple[Picture, ...]
    classes: tuple[str, ...]
    corrupt: dict[Path, str]

    @property
    def labels(self) -> torch.Tensor:
        """The class of each picture, int64 [N]."""
        return torch.tensor([picture.label for picture in self.pictures])

    @property
    def counts(self) -> list[int]:
        """How many pictures each class has."""
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist()

    @cached_property
    def digest(self) -> str:
        """The identity of pictures and classes, wherever the folder lies."""
        state = hashlib.sha256()
        for _, label, digest in self.pictures:
            state.update(f"{digest} {self.classes[label]}\n".encode())
        return f"sha256:{state.hexdigest()}"

    def split(self, share: float, seed: int) -> tuple[Self, Self]:
        """Return two parts, the second with this share of every class, rounded, and at least one.

        Raises:
            DataError: a class has too few pictures to have one in both.
        """
        held: set[Picture] = set()
        for label, own in enumerate(self._by_class()):
            if len(own) < 2:
                raise DataError(
                    f"class {self.classes[label]} has 1 picture; one to train on and one to "
                    "judge by are needed (--validation FOLDER gives others to judge by)"
                )
            count = min(max(1, round(share * len(own))), len(own) - 1)
            held.update(_shuffled(own, seed, label)[:count])
        return self._part(set(self.pictures) - held), self._part(held)

    def sample(self, most: int, seed: int) -> Self:
        """Return at most so many pictures of each class, drawn from the seed."""
        chosen: set[Picture] = set()
        for label, own in enumerate(self._by_class()):
            chosen.update(_shuffled(own, seed, label)[:most])
        return self._part(chosen)

    def _by_class(self) -> list[list[Picture]]:
        found: list[list[Picture]] = [[] for _ in self.classes]
        for picture in self.pictures:
            found[picture.label].append(picture)
        return found

    def _part(self, chosen: Collection[Picture]) -> Self:
        pictures = tuple(picture for picture in self.pictures if picture in chosen)
        return replace(self, pictures=pictures, corrupt={})


def _shuffled(pictures: Sequence[Picture], *purpose: int) -> list[Picture]:
    order = torch.randperm(len(pictures), generator=generator(*purpose)).tolist()
    return [pictures[index] for index in order]


def scan(
    folder: Path,
    corrupt: Corrupt,
    classes: Sequence[str] | None = None,
    *,
    whole: Collection[str] = (),
) -> Photographs:
    """List an image folder, and decode every picture once to see that it is whole.

    Args:
        folder: holds one folder for each class.
        corrupt: whether a file that cannot be decoded is left out or ends this.
        classes: what the classes have to be; None for whatever they are.
        whole: the digests of files that an earlier scan decoded; they are not
            decoded again.

    Raises:
        DataError: there is no such folder, it has fewer than two class folders or others
            than `classes`, one of them has no pictures, or a picture is corrupt.
    """
    try:
        found = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from error
    if not found:
        raise DataError(f"{folder}: has no folders; each class is a folder of pictures")
    if len(found) == 1:
        raise DataError(f"{folder}: has one folder, {found[0]}; at least two classes are needed")
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
        looked = list(pool.map(partial(_look, whole), (file for file, _ in listed)))
    pictures, damaged = [], {}
    for (file, label), (digest, flaw) in zip(listed, looked, strict=True):
        if flaw:
            damaged[file] = flaw
        else:
            pictures.append(Picture(file, label, digest))
    if damaged and corrupt == "fail":
        file, flaw = next(iter(damaged.items()))
        raise DataError(
            f"{file}: {flaw}; {len(damaged)} of {len(listed)} pictures are corrupt, "
            "which --corrupt skip leaves out"
        )
    for label, name in enumerate(found):
        if all(picture.label != label for picture in pictures):
            raise DataError(f"{folder / name}: has no pictures")
    return Photographs(tuple(pictures), found, damaged)


class FolderData:
    """The pictures of a folder, decoded as they are needed, for a network of one input.

    The processes that decode live as long as this object. Of two iterators that
    `epoch` gives, only the later one may be used; the same holds for `all`.

    Args:
        photographs: which pictures.
        spec: what the network takes.
        settings: how they are changed at random in training.
        workers: processes that decode; 0 decodes in this one.
        passes: how often an epoch sees every picture.
    """

    def __init__(
        self,
        photographs: Photographs,
        spec: InputSpec,
        settings: Settings,
        *,
        workers: int,
        passes: int = 1,
    ) -> None:
        self.photographs = photographs
        self._passes = passes
        self._training = _Loader(
            _Decoded(photographs, _augmentation(spec, settings), spec), workers
        )
        self._as_is = _Loader(_Decoded(photographs, None, spec), workers)

    @property
    def digest(self) -> str:
        """The identity of the pictures and their classes."""
        return self.photographs.digest

    def __len__(self) -> int:
        """Return how many pictures an epoch sees."""
        return len(self.photographs.pictures) * self._passes

    def epoch(self, seed: int, epoch: int, batch_size: int, *, start: int = 0) -> Iterator[Batch]:
        """Give one epoch's batches from number `start` on, shuffled and augmented.

        What is drawn for a picture depends on the seed, the epoch and the picture,
        not on the worker that decodes it.
        """
        count = len(self.photographs.pictures)
        wanted, batches = itertools.tee(shares(len(self), batch_size, seed, epoch, start))
        drawn = (
            [(own % count, derive(seed, epoch, own)) for own in chosen[share].tolist()]
            for _, chosen, share in wanted
        )
        for (images, labels), (_, chosen, _) in zip(
            self._training.load(drawn), batches, strict=True
        ):
            yield Batch(images, labels, len(chosen))

    def all(self) -> Iterator[Batch]:
        """Give every picture once, resized and cropped as in serving, in order."""
        return self._in_order(self._as_is, lambda _: 0)

    def view(self, seed: int, number: int) -> Iterator[Batch]:
        """Give every picture once, augmented, in order; each number is another view."""
        return self._in_order(self._training, lambda index: derive(seed, number, index))

    def _in_order(self, loader: "_Loader", draw: Callable[[int], int]) -> Iterator[Batch]:
        indices = torch.arange(len(self.photographs.pictures))
        parts = torch.split(indices, _EVALUATED_AT_ONCE)
        for images, labels in loader.load([(i, draw(i)) for i in part.tolist()] for part in parts):
            yield Batch(images, labels, len(labels))


class _Loader:
    """Decodes pictures in processes that stay.

    A batch is asked for as indices, each with the seed of its random changes.
    """

    def __init__(self, decoded: "_Decoded", workers: int) -> None:
        self._wanted = _Wanted()
        self._loader = DataLoader(
            decoded,
            batch_sampler=self._wanted,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def load(
        self, batches: Iterable[list[tuple[int, int]]]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Give the images and labels of batches, each drawn when its turn comes."""
        self._wanted.batches = batches
        for images, labels in self._loader:
            yield images.contiguous(memory_format=torch.channels_last), labels


class _Wanted:
    """The batches that a DataLoader is to make next."""

    batches: Iterable[list[tuple[int, int]]] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)


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
        file, label, _ = self._photographs.pictures[index]
        with Image.open(file) as picture:
            if self._augment is None:
                return preprocess(picture, self._spec), label
            torch.manual_seed(seed)
            return self._augment(upright(picture, self._spec.channels)), label


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


def _look(whole: Collection[str], file: Path) -> tuple[str, str]:
    """Return a file's SHA-256, and what is wrong with its picture, if anything."""
    try:
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest in whole:
            return digest, ""
        with Image.open(io.BytesIO(content)) as picture:
            # A JPEG is read at an eighth of its size, and to its end.
            picture.draft("RGB", (1, 1))
            picture.load()
            if picture.mode == "F":
                return "", RANGELESS
    except UnidentifiedImageError:
        return "", "is no picture"
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        return "", str(error)
    return digest, ""
