"""`foveate visualize features`: what channels of layers answer to pictures."""

from typing import Annotated, Literal

import torch

from foveate_train.drawing import heat, sheet
from foveate_train.options import As, Command
from foveate_train.progress import tracked
from foveate_train.recording import recorded
from foveate_train.visualize.options import PictureOptions

_CHANNELS = 3


class FeaturesOptions(PictureOptions):
    """Draw feature maps: a row for each channel of each layer, a column for each picture.

    Without --layers, there is one of each size of maps, and without --channels the three that
    vary most over the pictures. features-LAYER.npy holds [pictures, channels, height, width].

        foveate visualize features package:efficientnet_lite0 cat.jpg dog.jpg --out features
    """

    layers: Annotated[tuple[str, ...], As("LAYER", many=True)] = ()
    """The paths of layers, such as layer1 or blocks.2"""
    channels: Annotated[tuple[int, ...], As("N", many=True)] = ()
    """Channels of every one of the layers, from 0"""
    scale: Literal["own", "shared"] = "own"
    """Whether each channel has colours of its own from its least to its largest value"""


def run(options: FeaturesOptions) -> int:
    """Draw the feature maps; return 0.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    subject = options.subject()
    pictures = options.pictures(subject)
    layers = subject.layers(options.layers)
    for layer in layers:
        subject.check_channels(layer, options.channels)
    found: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
    for picture in tracked(pictures, "pictures"):
        with torch.no_grad(), recorded(subject.module, layers) as seen:
            subject.module(subject.batch([picture]))
        for layer in layers:
            found[layer].append(seen[layer][0].cpu())
    maps = {layer: torch.stack(each) for layer, each in found.items()}
    chosen = {layer: options.channels or _varied(each) for layer, each in maps.items()}
    kept = {layer: each[:, list(chosen[layer])] for layer, each in maps.items()}
    rows = [list(subject.shown(torch.stack([each.image for each in pictures])))]
    names = ["input"]
    whole = (
        min(float(each.amin()) for each in kept.values()),
        max(float(each.amax()) for each in kept.values()),
    )
    for layer, each in kept.items():
        for number, channel in zip(chosen[layer], each.unbind(1), strict=True):
            ends = (float(channel.amin()), float(channel.amax()))
            low, high = whole if options.scale == "shared" else ends
            rows.append([heat(one, low, high) for one in channel])
            names.append(f"{layer}: {number}")
    figure = sheet(
        rows,
        rows=names,
        columns=[picture.title for picture in pictures],
        cell=0.62 if len(pictures) > 4 else 1.2,
        scale=whole if options.scale == "shared" else None,
    )
    options.keep("features", figure, **kept)
    return 0


def _varied(maps: torch.Tensor) -> tuple[int, ...]:
    """Return the channels of maps [N, C, H, W] that vary most, the most varied first."""
    order = maps.transpose(0, 1).flatten(1).std(1).argsort(descending=True)
    return tuple(order[:_CHANNELS].tolist())


COMMAND = Command(name="features", options=FeaturesOptions, run=run)
