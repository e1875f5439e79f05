"""What single channels answer to most: the strongest patches, and what in them counted.

After Zeiler & Fergus, Visualizing and understanding convolutional networks, 2013, with
the guided gradient of Springenberg et al., Striving for simplicity, 2014, in the place of
the deconvolution: the same way back, whose ReLUs also stop what had no part in the way there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import nn
from torchvision.datasets.folder import IMG_EXTENSIONS

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train import registry
from foveate_train.data.preprocess import preprocess
from foveate_train.drawing import saving, sheet
from foveate_train.errors import DataError
from foveate_train.recording import recorded
from foveate_train.settings import Settings
from foveate_train.studies import network
from foveate_train.studies.options import StudyOptions
from foveate_train.studies.pages import markdown_row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "patches"
SETTINGS = Settings()
DIGIT_LAYERS = ("layer2", "layer4")
PHOTOGRAPHS = "package:efficientnet_lite0"
PHOTOGRAPH_LAYERS = ("blocks.1", "blocks.2", "blocks.4")

_CHANNELS = 6
_PATCHES = 6
_AT_ONCE = 100
_COUNTS = 0.05
"""The share of the largest gradient from which a pixel counts."""


class Patch(NamedTuple):
    """A place in a picture: of which picture, where in the channel's map, and how strong."""

    picture: int
    row: int
    column: int
    value: float


def run(options: StudyOptions, stop: Event) -> bool:
    """Train the network, find the patches, and write the page; False if interrupted."""
    trained = network.trained("foveate:convnet4", {}, SETTINGS, options, stop)
    if trained is None:
        return False
    digits = torch.cat([batch.images for batch in trained.test.all()])
    sets = {"digits": _found(trained.classifier.module, DIGIT_LAYERS, digits)}
    spec = trained.classifier.input
    figures = _figures(trained.classifier.module, sets["digits"], digits, spec)
    record: dict[str, Any] = {**trained.record, "photographs": None}
    if options.photographs is not None:
        classifier = registry.create(PHOTOGRAPHS)
        photographs = _photographs(options.photographs, classifier.input)
        record["photographs"] = len(photographs)
        module = classifier.module.eval().requires_grad_(requires_grad=False)
        sets["photographs"] = _found(module, PHOTOGRAPH_LAYERS, photographs)
        figures |= _figures(module, sets["photographs"], photographs, classifier.input)
    network.write(
        options.folder,
        results={
            **record,
            "patches": {
                layer: {
                    str(channel): [
                        {
                            **patch._asdict(),
                            "value": round(patch.value, 3),
                            "label": int(trained.test.labels[patch.picture])
                            if name == "digits"
                            else None,
                        }
                        for patch in each
                    ]
                    for channel, each in channels.items()
                }
                for name, layers in sets.items()
                for layer, channels in layers.items()
            },
        },
        columns=["layer", "channel", "picture", "row", "column", "value"],
        rows=(
            [layer, channel, *patch[:3], f"{patch.value:.3f}"]
            for layers in sets.values()
            for layer, channels in layers.items()
            for channel, each in channels.items()
            for patch in each
        ),
        pictures={f"{layer}.png": saving(figure) for layer, figure in figures.items()},
        page=page,
    )
    return True


def page(results: Mapping[str, Any]) -> str:
    """Return the page, all of whose figures are those of `results.json`."""
    count = results["photographs"]
    photographs = "" if count is None else _photograph_part(results, count)
    return network.page(
        NAME,
        results,
        patches=_PATCHES,
        digits="\n\n".join(_part(results, layer, labels=True) for layer in DIGIT_LAYERS),
        photographs=photographs,
    )


def strongest(maps: Iterable[torch.Tensor], count: int) -> list[Patch]:
    """Return the places where one channel is strongest, at most one in a picture.

    Args:
        maps: of the channel, in batches [N, height, width] in the order of the pictures.
        count: how many places.
    """
    all_maps = torch.cat(list(maps))
    width = all_maps.shape[2]
    values, places = all_maps.flatten(1).max(1)
    return [
        Patch(picture, *divmod(int(places[picture]), width), float(values[picture]))
        for picture in values.argsort(descending=True)[:count].tolist()
    ]


def guided(
    module: nn.Module, layer: str, channel: int, patch: Patch, image: torch.Tensor
) -> torch.Tensor:
    """Return the guided gradient of one value of a feature map by the picture, [C, H, W].

    A ReLU hands back what is above 0 alone, as a gradient and as a value.
    """
    pixels = image[None].clone().requires_grad_()
    with recorded(module, [layer]) as seen, _guiding(module):
        module(pixels)
        (gradient,) = torch.autograd.grad(seen[layer][0, channel, patch.row, patch.column], pixels)
    return gradient[0]


def square(gradient: torch.Tensor) -> tuple[slice, slice]:
    """Return the smallest square of the picture that holds what counts of a gradient [C, H, W].

    What counts is all that is not far below the largest: deep layers see most of the
    picture, and next to nothing of its border.
    """
    sizes = gradient.abs().amax(0)
    height, width = sizes.shape
    if not sizes.any():
        return slice(0, height), slice(0, width)
    reached = sizes > _COUNTS * sizes.amax()
    rows, columns = reached.any(1).nonzero()[:, 0], reached.any(0).nonzero()[:, 0]
    side = min(int(max(rows[-1] - rows[0], columns[-1] - columns[0])) + 1, height, width)
    spans = []
    for places, most in ((rows, height), (columns, width)):
        middle = int(places[0] + places[-1] + 1) // 2
        begin = min(max(0, middle - side // 2), most - side)
        spans.append(slice(begin, begin + side))
    return spans[0], spans[1]


@torch.no_grad()
def _found(
    module: nn.Module, layers: Sequence[str], images: torch.Tensor
) -> dict[str, dict[int, list[Patch]]]:
    """Find the strongest patches of the first channels of layers, by layer and channel."""
    found = {}
    for layer in layers:
        maps = []
        for batch in torch.split(images, _AT_ONCE):
            with recorded(module, [layer]) as seen:
                module(batch)
            maps.append(seen[layer][:, :_CHANNELS].clone())
        found[layer] = {
            channel: strongest((each[:, channel] for each in maps), _PATCHES)
            for channel in range(_CHANNELS)
        }
    return found


@contextmanager
def _guiding(module: nn.Module) -> Iterator[None]:
    """Have the ReLUs of a network return no gradient below 0 within the block."""
    handles = []
    for each in module.modules():
        if isinstance(each, nn.ReLU | nn.ReLU6):
            # What a hook watches must not be changed in its place.
            each.inplace = False
            handles.append(each.register_full_backward_hook(_not_below_0))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _not_below_0(
    _module: nn.Module, given: tuple[torch.Tensor, ...] | torch.Tensor, _taken: object
) -> tuple[torch.Tensor, ...]:
    return (given[0].clamp(min=0),)


def _figures(
    module: nn.Module,
    found: Mapping[str, Mapping[int, Sequence[Patch]]],
    images: torch.Tensor,
    spec: InputSpec,
) -> dict[str, "Figure"]:
    """Draw each layer's patches, and the guided gradient of each beside it."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    drawn = {}
    for layer, channels in found.items():
        rows = []
        for channel, patches in channels.items():
            row = []
            for patch in patches:
                image = images[patch.picture]
                gradient = guided(module, layer, channel, patch, image)
                rows_of, columns_of = square(gradient)
                largest = gradient.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
                for picture in (image * std + mean, 0.5 + gradient / largest / 2):
                    cut = picture[:, rows_of, columns_of].clamp(0, 1)
                    row.append(cut.permute(1, 2, 0).expand(-1, -1, 3))
            rows.append(row)
        names = [str(channel) for channel in channels]
        drawn[layer] = sheet(rows, rows=names, columns=["patch", "gradient"] * _PATCHES)
    return drawn


def _photographs(folder: Path, spec: InputSpec) -> torch.Tensor:
    """Read every picture of a folder, and below it, [N, C, H, W].

    Raises:
        DataError: there is none, or one cannot be read.
    """
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMG_EXTENSIONS)
    if not files:
        raise DataError(f"--photographs {folder}: holds no picture")
    found = []
    for file in files:
        try:
            with Image.open(file) as picture:
                found.append(preprocess(picture, spec))
        except OSError as error:
            raise DataError(f"--photographs {file}: cannot be read ({error})") from error
    return torch.stack(found)


def _part(results: Mapping[str, Any], layer: str, *, labels: bool) -> str:
    """Return a layer's picture and table."""
    heads = ["channel", "strongest", f"of rank {_PATCHES}"]
    if labels:
        heads.append("digits")
    rows = [markdown_row(heads), markdown_row(["---"] * len(heads))]
    for channel, patches in results["patches"][layer].items():
        cells = [channel, f"{patches[0]['value']:.2f}", f"{patches[-1]['value']:.2f}"]
        if labels:
            cells.append(", ".join(str(patch["label"]) for patch in patches))
        rows.append(markdown_row(cells))
    table = "\n".join(rows)
    return f"### {layer}\n\n![The strongest patches of {layer}]({layer}.png)\n\n{table}"


def _photograph_part(results: Mapping[str, Any], count: int) -> str:
    said = (
        f"## Photographs\n\nThe same for `{PHOTOGRAPHS}` with its ImageNet weights, over the "
        f"{count} pictures of a folder."
    )
    shown = (_part(results, layer, labels=False) for layer in PHOTOGRAPH_LAYERS)
    return "\n\n".join([said, *shown])
