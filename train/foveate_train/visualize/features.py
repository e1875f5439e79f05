"""`foveate visualize features`: what channels of layers answer to pictures."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from foveate_train.ascent import normalised
from foveate_train.drawing import heat, sheet
from foveate_train.errors import SettingsError
from foveate_train.options import As, Command
from foveate_train.progress import tracked
from foveate_train.recording import recorded
from foveate_train.strokes import bar
from foveate_train.visualize.options import PictureOptions
from foveate_train.visualize.subject import Subject

_CHANNELS = 3
_TURN, _OFF = 15, 45


class FeaturesOptions(PictureOptions):
    """Draw feature maps: a row for each channel of each layer, a column for each picture.

    Without --layers, there is one of each size of maps, and without --channels the three that
    vary most over the pictures, or with --strokes the three that answer most to strokes of one
    direction. features-LAYER.npy holds [pictures, channels, height, width].

        foveate visualize features package:efficientnet_lite0 cat.jpg dog.jpg --out features
    """

    layers: Annotated[tuple[str, ...], As("LAYER", many=True)] = ()
    """The paths of layers, such as layer1 or blocks.2; of a VGG also block1_conv1 and so on"""
    channels: Annotated[tuple[int, ...], As("N", many=True)] = ()
    """Channels of every one of the layers, from 0"""
    strokes: Annotated[float, Field(ge=0, lt=180)] | None = None
    """Take the channels that answer to strokes of this angle, in degrees: 0 lie, 90 stand"""
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
    titles = {subject.path(name): name for name in options.layers}
    if options.strokes is not None and options.channels:
        raise SettingsError("--strokes finds channels, and --channels names them")
    for layer in layers:
        subject.check_channels(layer, options.channels)
    found: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
    for picture in tracked(pictures, "pictures"):
        with torch.no_grad(), recorded(subject.module, layers) as seen:
            subject.module(subject.batch([picture]))
        for layer in layers:
            found[layer].append(seen[layer][0].cpu())
    maps = {layer: torch.stack(each) for layer, each in found.items()}
    if options.strokes is None:
        chosen = {layer: options.channels or _varied(each) for layer, each in maps.items()}
    else:
        chosen = {layer: _stroked(subject, layer, options.strokes) for layer in layers}
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
            names.append(f"{titles.get(layer, layer)}: {number}")
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


def _stroked(subject: Subject, layer: str, angle: float) -> tuple[int, ...]:
    """Return the channels that answer most to strokes of an angle, and say how much.

    An answer is the mean rise of the map above that of a plain picture. Most is the gap between
    the answer to that stroke and the largest to strokes that lie at least 45 degrees off.
    """
    spec = subject.classifier.input
    turns = torch.arange(0, 180, _TURN)
    bars = torch.stack([bar(angle + turn, spec.height, spec.width) for turn in turns.tolist()])
    plain = torch.zeros_like(bars[:1])
    pixels = (torch.cat([plain, bars]) / 255).expand(-1, spec.channels, -1, -1)
    with torch.no_grad(), recorded(subject.module, [layer]) as seen:
        subject.module(normalised(pixels.to(subject.device), spec))
    maps = seen[layer].cpu()
    answers = (maps[1:] - maps[0]).relu().mean((2, 3))
    own, others = answers[0], answers[(turns >= _OFF) & (turns <= 180 - _OFF)].amax(0)
    gaps = own - others
    found = gaps.argsort(descending=True)[:_CHANNELS].tolist()
    for channel in found:
        print(
            f"{layer}, channel {channel}: mean rise {own[channel]:.3g} for a stroke of {angle:g} "
            f"degrees, at most {others[channel]:.3g} for one {_OFF} degrees off or more"
        )
    return tuple(found)


COMMAND = Command(name="features", options=FeaturesOptions, run=run)
