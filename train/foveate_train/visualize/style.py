"""`foveate visualize style`: one picture in the style of another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch.nn import functional

from foveate_train.ascent import differences, normalised
from foveate_train.drawing import colours, sheet
from foveate_train.options import As, Command
from foveate_train.progress import tracked
from foveate_train.recording import recorded
from foveate_train.visualize.options import VisualizeOptions
from foveate_train.visualize.subject import Subject, photograph

_RATE = 0.02
_MOST_SIDE = 1024


class StyleOptions(VisualizeOptions):
    """Draw one picture in the style of another: what is where of the first, textures of the second.

    Both losses are relative: 1 is as far away as a picture without any activation. Without
    --content-layers it is the middle one of the sizes of maps, and without --style-layers all.
    style-picture.npy holds [channels, height, width], 0 to 1; style-losses.npy, [steps, 2], the
    content and the style loss before each step and after the last.

        foveate visualize style package:efficientnet_lite0 cat.jpg coffee.jpg --out style
    """

    content: Annotated[Path, As("CONTENT", names=("content",))]
    """The picture that says what is where"""
    style: Annotated[Path, As("STYLE", names=("style",))]
    """The picture that gives the textures"""
    content_layers: Annotated[tuple[str, ...], As("LAYER", many=True)] = ()
    """The paths of layers whose activations are to be the content's"""
    style_layers: Annotated[tuple[str, ...], As("LAYER", many=True)] = ()
    """The paths of layers whose channels are to be correlated as the style's"""
    content_weight: Annotated[float, Field(ge=0)] = 1.0
    """What the content loss counts"""
    style_weight: Annotated[float, Field(ge=0)] = 10.0
    """What the style loss counts"""
    variation: Annotated[float, Field(ge=0)] = 3.0
    """What the mean difference between neighbouring pixels counts (total variation)"""
    start: Literal["content", "style", "noise"] = "content"
    """What the picture is at first"""
    steps: Annotated[int, Field(ge=1)] = 120
    """Steps of the descent"""
    side: Annotated[int, Field(ge=8, le=_MOST_SIDE)] | None = None
    """Height and width of the picture. Default: the network's"""


class Losses(NamedTuple):
    """How far a picture is from the content and from the style, relative."""

    content: torch.Tensor
    style: torch.Tensor


class Target:
    """What a picture is compared with: activations of one picture, and Gram matrices of another.

    Gatys et al., Image style transfer using convolutional neural networks, 2016. Their sums of
    squares are divided by those of the targets, so that weights mean the same for any network.

    Args:
        subject: the classifier.
        content: the picture [1, C, H, W], 0 to 1, whose activations count.
        style: that whose Gram matrices count.
        content_layers: whose activations.
        style_layers: whose Gram matrices.
    """

    def __init__(
        self,
        subject: Subject,
        content: torch.Tensor,
        style: torch.Tensor,
        content_layers: Sequence[str],
        style_layers: Sequence[str],
    ) -> None:
        self._subject = subject
        with torch.no_grad():
            of_content = self._activations(content, content_layers)
            of_style = self._activations(style, style_layers)
        self._content = of_content
        self._style = {layer: gram(maps) for layer, maps in of_style.items()}

    def losses(self, pixels: torch.Tensor) -> Losses:
        """Return how far a picture [1, C, H, W], 0 to 1, is."""
        maps = self._activations(pixels, [*{**self._content, **self._style}])
        grams = {layer: gram(maps[layer]) for layer in self._style}
        return Losses(_distance(maps, self._content), _distance(grams, self._style))

    def _activations(
        self, pixels: torch.Tensor, layers: Sequence[str]
    ) -> Mapping[str, torch.Tensor]:
        with recorded(self._subject.module, layers) as seen:
            self._subject.module(normalised(pixels, self._subject.classifier.input))
        return {layer: seen[layer] for layer in layers}


def gram(maps: torch.Tensor) -> torch.Tensor:
    """Return the mean products of pairs of channels of maps [N, C, H, W], [N, C, C]."""
    flat = maps.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def run(options: StyleOptions) -> int:
    """Descend and draw; return 0.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    subject = options.subject()
    spec = subject.classifier.input
    if options.side is not None:
        subject.check_side(options.side)
        sides = {"height": options.side, "width": options.side, "resize": options.side}
        spec = spec.changed(**sides)
    stages = subject.stages()
    content_layers = subject.layers(
        options.content_layers or stages[len(stages) // 2 :][:1], "--content-layers"
    )
    style_layers = subject.layers(options.style_layers or stages, "--style-layers")
    pictures = [photograph(file, spec) for file in (options.content, options.style)]
    content, style = (subject.pixels(subject.batch([picture])) for picture in pictures)
    target = Target(subject, content, style, content_layers, style_layers)
    first = {"content": content, "style": style, "noise": torch.rand_like(content)}[options.start]
    found, losses = styled(
        target,
        first,
        content_weight=options.content_weight,
        style_weight=options.style_weight,
        variation=options.variation,
        steps=options.steps,
    )
    for name, of_steps in zip(("content", "style"), losses.T.tolist(), strict=True):
        print(f"{name} loss: {of_steps[0]:.4f} at first, {of_steps[-1]:.4f} at last")
    figure = sheet(
        [list(map(colours, (content, style, found)))],
        columns=[*(picture.title for picture in pictures), "both"],
        cell=2.2,
    )
    options.keep("style", figure, picture=found[0], losses=losses)
    return 0


def styled(
    target: Target,
    first: torch.Tensor,
    *,
    content_weight: float,
    style_weight: float,
    variation: float,
    steps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the picture [1, C, H, W], 0 to 1, that gradient descent finds, and the losses.

    Args:
        target: what it is compared with.
        first: the picture to begin with.
        content_weight: what the content loss counts.
        style_weight: what the style loss counts.
        variation: what the mean difference between neighbouring pixels counts.
        steps: how many.

    Returns:
        the picture, and [steps + 1, 2]: content and style loss before each step and at last.
    """
    pixels = first.clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], _RATE)
    known = []
    for _ in tracked(range(steps), "style"):
        optimizer.zero_grad()
        losses = target.losses(pixels)
        known.append(torch.stack(losses).detach())
        whole = content_weight * losses.content + style_weight * losses.style
        torch.autograd.backward(whole + variation * differences(pixels) / pixels.numel())
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    with torch.no_grad():
        known.append(torch.stack(target.losses(pixels)))
    return pixels.detach(), torch.stack(known).cpu()


def _distance(
    found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Return the mean over the layers of the squared distance, of the squared target."""
    return torch.stack(
        [
            functional.mse_loss(found[layer], each)
            / each.square().mean().clamp(min=torch.finfo(each.dtype).tiny)
            for layer, each in wanted.items()
        ]
    ).mean()


COMMAND = Command(name="style", options=StyleOptions, run=run)
