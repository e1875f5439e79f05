"""The classifier that is looked into, and the pictures that it is shown."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train import checkpoint, registry
from foveate_train.classifier import Classifier
from foveate_train.data import mnist
from foveate_train.data.memory import normalise
from foveate_train.data.preprocess import preprocess, upright
from foveate_train.errors import DataError, SettingsError
from foveate_train.recording import recorded

_DIGITS = 10
_KERAS = re.compile(r"block\d+_conv\d+")
_NAMED = 8
_TITLE = 15
_ENLARGED = 2
"""How far a picture may be enlarged."""


class Picture(NamedTuple):
    """A picture as a network takes it.

    Attributes:
        name: for files and titles.
        image: float32 [channels, height, width], normalised.
    """

    name: str
    image: torch.Tensor

    @property
    def title(self) -> str:
        """The name, short enough to stand above the picture."""
        return shortened(self.name)


@dataclass(frozen=True)
class Subject:
    """A classifier in evaluation mode, whose parameters are frozen, on a device."""

    classifier: Classifier
    device: torch.device

    @classmethod
    def of(
        cls, model: str, weights: str | None, arguments: Sequence[str], device: torch.device
    ) -> "Subject":
        """Return the classifier of a checkpoint's folder or of a name of the registry.

        Raises:
            SettingsError: weights or arguments are given beside a checkpoint.
            TrainError: the classifier cannot be had, as its subclass says.
        """
        if Path(model).is_dir():
            if weights is not None or arguments:
                raise SettingsError(f"{model} is a checkpoint and brings its weights and arguments")
            classifier = checkpoint.load(Path(model)).classifier
        else:
            parsed = registry.parse_arguments(arguments)
            classifier = registry.create(model, weights=weights, **parsed)
        classifier.module.to(device).eval().requires_grad_(requires_grad=False)
        return cls(classifier, device)

    @property
    def module(self) -> torch.nn.Module:
        """The network."""
        return self.classifier.module

    def batch(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Return pictures as one input of the network, [N, C, H, W]."""
        return torch.stack([picture.image for picture in pictures]).to(self.device)

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Return inputs [N, C, H, W] as pictures of 0 to 1."""
        spec = self.classifier.input
        mean, std = (
            torch.tensor(values, device=images.device).view(-1, 1, 1)
            for values in (spec.mean, spec.std)
        )
        return (images.detach() * std + mean).clamp(0, 1)

    def shown(self, images: torch.Tensor) -> torch.Tensor:
        """Return inputs [N, C, H, W] as colours [N, H, W, 3], 0 to 1."""
        return self.pixels(images).cpu()[:, :3].permute(0, 2, 3, 1).expand(-1, -1, -1, 3)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """The shape of one picture as the network takes it."""
        spec = self.classifier.input
        return 1, spec.channels, spec.height, spec.width

    @cached_property
    def maps(self) -> Mapping[str, tuple[int, int, int]]:
        """The layers that give maps of several places: channels, height and width, by path.

        They stand in the order in which they end. A layer that gives its channels last, as
        some transformers' do, is none of them: its height and width are not the picture's.
        """
        spec = self.classifier.input
        names = [name for name, _ in self.module.named_modules() if name]
        image = torch.zeros(self.input_shape, device=self.device)
        with torch.no_grad(), recorded(self.module, names) as seen:
            self.module(image)
        return {
            name: (output.shape[1], output.shape[2], output.shape[3])
            for name, output in seen.items()
            if output.ndim == 4
            and output.shape[2] * output.shape[3] > 1
            and abs(output.shape[2] / output.shape[3] - spec.height / spec.width) < 0.2
        }

    def stages(self) -> list[str]:
        """Return a layer of each size of maps, from the picture on.

        It is the last of those whose paths are the shortest: a block rather than what it holds.

        Raises:
            SettingsError: no layer gives maps.
        """
        chosen: dict[tuple[int, int], str] = {}
        for name, (_, *size) in self.maps.items():
            before = chosen.get((size[0], size[1]))
            if before is None or name.count(".") <= before.count("."):
                chosen[size[0], size[1]] = name
        if not chosen:
            raise SettingsError(f"{self.classifier.name} has no layer that gives maps")
        return sorted(chosen.values(), key=list(self.maps).index)

    def layers(self, names: Sequence[str], option: str = "--layers") -> list[str]:
        """Return these layers, which an option gives, or the stages where there are none.

        Raises:
            SettingsError: one is unknown, or gives no maps.
        """
        paths = list(map(self.path, names))
        for name in paths:
            if name not in self.maps:
                known = list(self.maps)
                near = get_close_matches(name, known, n=_NAMED, cutoff=0.4) or known[:_NAMED]
                raise SettingsError(
                    f"{option} {name}: {self.classifier.name} has no layer of this name that "
                    f"gives maps; near are {', '.join(near)}"
                )
        return list(dict.fromkeys(paths)) or self.stages()

    def path(self, name: str) -> str:
        """Return the path of a layer that may be called as Keras calls those of VGG.

        block2_conv1 is the first convolution behind the first pooling, with its ReLU.
        """
        if not _KERAS.fullmatch(name) or "vgg" not in self.classifier.name:
            return name
        block, number, called = 1, 0, ""
        for path, module in self.module.named_modules():
            if isinstance(module, nn.MaxPool2d):
                block, number, called = block + 1, 0, ""
            elif isinstance(module, nn.Conv2d):
                number += 1
                called = f"block{block}_conv{number}"
            elif isinstance(module, nn.ReLU) and called == name:
                return str(path)
        return name

    def check_side(self, side: int) -> None:
        """See to it that the network takes square pictures of this side.

        Raises:
            SettingsError: it does not.
        """
        try:
            with torch.no_grad():
                self.module(torch.zeros(1, self.input_shape[1], side, side, device=self.device))
        # Which one a network raises depends on where it first notices.
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise SettingsError(
                f"--side {side}: {self.classifier.name} takes no pictures of this side ({reason})"
            ) from error

    def class_number(self, text: str, option: str = "--class") -> int:
        """Return the class of a number or of a label, which an option gives.

        Raises:
            SettingsError: there is no such class.
        """
        labels = self.classifier.labels
        if text in labels:
            return labels.index(text)
        last = len(labels) - 1
        if text.isdecimal() and int(text) <= last:
            return int(text)
        near = get_close_matches(text, labels, n=_NAMED)
        said = f", or near labels: {', '.join(near)}" if near else ""
        raise SettingsError(f"{option} {text}: the classes are 0 to {last}{said}")

    def check_channels(self, layer: str, channels: Sequence[int]) -> None:
        """See to it that a layer has these channels.

        Raises:
            SettingsError: it has not.
        """
        count = self.maps[layer][0]
        for channel in channels:
            if not 0 <= channel < count:
                raise SettingsError(
                    f"--channels {channel}: {layer} has the channels 0 to {count - 1}"
                )


def shortened(text: str) -> str:
    """Return a text that is short enough to stand above a picture."""
    return text if len(text) <= _TITLE else f"{text[: _TITLE - 1]}…"


def photograph(file: Path, spec: InputSpec, enlarged: float = 1.0) -> Picture:
    """Read a picture, so many times as large as the network takes it.

    Raises:
        SettingsError: it is too small for the network.
        DataError: it cannot be read.
    """
    try:
        with Image.open(file) as opened:
            opened.load()
            picture = upright(opened, spec.channels)
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    if picture.width * _ENLARGED < spec.width or picture.height * _ENLARGED < spec.height:
        raise SettingsError(
            f"{file}: its {picture.width} x {picture.height} pixels are too few for a network that "
            f"takes {spec.width} x {spec.height}; the least is half of each"
        )
    sides = {name: round(enlarged * getattr(spec, name)) for name in ("height", "width", "resize")}
    return Picture(file.stem, preprocess(picture, spec.changed(**sides)))


def takes_digits(subject: Subject) -> bool:
    """Return whether the network takes MNIST's pictures and has their classes."""
    spec, classes = subject.classifier.input, len(subject.classifier.labels)
    return (spec.channels, spec.height, spec.width, classes) == (1, 28, 28, _DIGITS)


def digits(subject: Subject, data: Path | None, enlarged: float = 1.0) -> list[Picture]:
    """Return the first test picture of MNIST of each class, so many times as large as it is.

    Raises:
        SettingsError: the network does not take digits.
        DataError: MNIST cannot be had.
    """
    spec = subject.classifier.input
    if not takes_digits(subject):
        raise SettingsError(
            f"IMAGE is missing: {subject.classifier.name} takes {spec.width} x {spec.height} "
            f"pictures of {spec.channels} channels, and MNIST's are for classifiers of digits"
        )
    images, labels = map(torch.from_numpy, mnist.load("test", data))
    first = [int((labels == digit).nonzero()[0, 0]) for digit in range(_DIGITS)]
    chosen = normalise(images[first][:, None], spec)
    sides = (round(enlarged * spec.height), round(enlarged * spec.width))
    if enlarged != 1:
        chosen = functional.interpolate(chosen, sides, mode="bicubic")
    return [Picture(str(digit), image) for digit, image in enumerate(chosen)]
