"""`foveate visualize dream`: pictures into which a network draws what it looks for."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional

from foveate_train.ascent import normalised
from foveate_train.drawing import colours, sheet
from foveate_train.errors import SettingsError
from foveate_train.options import As, Command
from foveate_train.progress import tracked
from foveate_train.recording import recorded
from foveate_train.visualize.options import PictureOptions
from foveate_train.visualize.subject import Picture, Subject, takes_digits

_MOST_PIXELS = 2048


class DreamOptions(PictureOptions):
    """Draw what a layer looks for into pictures, by gradient ascent on its activations.

    An ascent begins at the network's own size and goes on at larger ones, the octaves. At each the
    network sees the picture in tiles of its own size, moved at random before each step. Without a
    picture, a network of photographs begins with noise.
    dream-PICTURE-after.npy holds [channels, height, width], 0 to 1.

        foveate visualize dream package:efficientnet_lite0 cat.jpg --layers blocks.4 --out dream
    """

    layers: Annotated[tuple[str, ...], As("LAYER", many=True)] = ()
    """The paths of layers. Default: the last but one of the sizes of maps"""
    channels: Annotated[tuple[int, ...], As("N", many=True)] = ()
    """Channels of every one of the layers, from 0. Default: all"""
    octaves: Annotated[int, Field(ge=1, le=8)] = 3
    """Sizes of the picture"""
    ratio: Annotated[float, Field(gt=1, le=2)] = 1.4
    """How much larger than the one before a size is"""
    steps: Annotated[int, Field(ge=1)] = 10
    """Steps of the ascent at each size"""
    rate: Annotated[float, Field(gt=0, le=1)] = 0.015
    """By how much a step changes a pixel in the mean, of 1"""
    jitter: Annotated[int, Field(ge=0)] | None = None
    """The picture is moved by up to so many pixels before each step. Default: any number"""


def run(options: DreamOptions) -> int:
    """Dream and draw; return 0.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    subject = options.subject()
    spec = subject.classifier.input
    largest = options.ratio ** (options.octaves - 1)
    if largest * max(spec.height, spec.width) > _MOST_PIXELS:
        raise SettingsError(
            f"--octaves {options.octaves} with --ratio {options.ratio:g} make pictures of "
            f"{round(largest * max(spec.height, spec.width))} pixels; the most is {_MOST_PIXELS}"
        )
    layers = subject.layers(options.layers or subject.stages()[-2:][:1])
    for layer in layers:
        subject.check_channels(layer, options.channels)
    if options.images or takes_digits(subject):
        pictures = options.pictures(subject, largest)
    else:
        sides = (round(largest * spec.height), round(largest * spec.width))
        pictures = [Picture("noise", torch.randn(spec.channels, *sides))]
    for picture in pictures:
        before = subject.pixels(subject.batch([picture]))
        after = dreamt(
            subject,
            before,
            layers,
            options.channels,
            octaves=options.octaves,
            ratio=options.ratio,
            steps=options.steps,
            rate=options.rate,
            jitter=options.jitter,
            seed=options.seed,
        )
        said = ", ".join(
            f"{layer} {was:.3g} before, {now:.3g} after"
            for layer, was, now in zip(
                layers,
                excitement(subject, before, layers, options.channels),
                excitement(subject, after, layers, options.channels),
                strict=True,
            )
        )
        print(f"{picture.name}: mean square of the activations: {said}")
        drawn = [[*map(colours, (before, after))]]
        figure = sheet(drawn, columns=[picture.title, " and ".join(layers)], cell=3)
        options.keep(f"dream-{picture.name}", figure, after=after[0])
    return 0


def dreamt(
    subject: Subject,
    pixels: torch.Tensor,
    layers: Sequence[str],
    channels: Sequence[int],
    *,
    octaves: int,
    ratio: float,
    steps: int,
    rate: float,
    jitter: int | None,
    seed: int,
) -> torch.Tensor:
    """Return a picture [1, C, H, W], 0 to 1, after gradient ascent at several sizes.

    Mordvintsev et al., Inceptionism, 2015: the mean square of the activations rises, by steps
    whose mean size is the same everywhere. What is drawn at one size is enlarged and added to the
    picture at the next, which so loses nothing of its own detail.

    Args:
        subject: the classifier.
        pixels: the picture, of the last and largest size.
        layers: whose activations rise.
        channels: of each of the layers; none are all.
        octaves: how many sizes there are.
        ratio: of each size to the one before.
        steps: at each size.
        rate: the mean change of a pixel by one step.
        jitter: how far the picture is moved before a step; None is by its whole size.
        seed: of the moves.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.zeros_like(pixels)
    sizes = [
        [max(1, round(side / ratio**octave)) for side in pixels.shape[2:]]
        for octave in reversed(range(octaves))
    ]
    for number in tracked(range(octaves * steps), "dream"):
        size = sizes[number // steps]
        if number % steps == 0:
            base = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
            drawn = functional.interpolate(drawn, size, mode="bilinear", antialias=True)
        most = max(size) if jitter is None else jitter
        moved = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
        seen = (base + drawn).roll(moved, (2, 3)).requires_grad_()
        squares = torch.stack(_mean_squares(subject, seen, layers, channels))
        # By logarithms each layer counts alike; a layer that is silent has no slope.
        height = (squares + torch.finfo(squares.dtype).tiny).log().sum()
        (gradient,) = torch.autograd.grad(height, seen)
        gradient /= gradient.abs().mean().clamp(min=torch.finfo(gradient.dtype).tiny)
        drawn += rate * gradient.roll([-way for way in moved], (2, 3))
        drawn = (base + drawn).clamp(0, 1) - base
    return base + drawn


@torch.no_grad()
def excitement(
    subject: Subject, pixels: torch.Tensor, layers: Sequence[str], channels: Sequence[int]
) -> list[float]:
    """Return the mean square of each layer's activations on a picture [1, C, H, W], 0 to 1."""
    return [float(each) for each in _mean_squares(subject, pixels, layers, channels)]


def _mean_squares(
    subject: Subject, pixels: torch.Tensor, layers: Sequence[str], channels: Sequence[int]
) -> list[torch.Tensor]:
    with recorded(subject.module, layers) as seen:
        subject.module(normalised(_tiles(pixels, subject), subject.classifier.input))
    return [
        (seen[layer][:, list(channels)] if channels else seen[layer]).square().mean()
        for layer in layers
    ]


def _tiles(pixels: torch.Tensor, subject: Subject) -> torch.Tensor:
    """Cut a picture into tiles of the network's size; the last of a row or column overlap."""
    height, width = subject.input_shape[2:]
    return torch.cat(
        [
            pixels[:, :, top : top + height, left : left + width]
            for top in _starts(pixels.shape[2], height)
            for left in _starts(pixels.shape[3], width)
        ]
    )


def _starts(length: int, tile: int) -> list[int]:
    return sorted({min(start, length - tile) for start in range(0, length, tile)})


COMMAND = Command(name="dream", options=DreamOptions, run=run)
