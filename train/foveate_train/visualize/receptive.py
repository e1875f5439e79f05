"""`foveate visualize receptive`: what part of a picture a unit sees, and what of it counts."""

import copy
from typing import Annotated, NamedTuple

import torch
from torch import nn

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.drawing import heat, sheet
from foveate_train.errors import SettingsError
from foveate_train.options import As, Command
from foveate_train.progress import tracked
from foveate_train.recording import recorded
from foveate_train.visualize.options import PictureOptions
from foveate_train.visualize.subject import Subject

_COUNTS = 0.95
_DIM, _LIT = 0.35, 0.6


class ReceptiveOptions(PictureOptions):
    """Draw the receptive field of the middle unit of layers: computed, and measured.

    Computed is the rectangle of pixels that the unit depends on at all. Measured is the mean size
    of its gradient by each pixel over the pictures, [height, width] in receptive-LAYER.npy.

        foveate visualize receptive package:efficientnet_lite0 cat.jpg --out receptive
    """

    layers: Annotated[tuple[str, ...], As("LAYER", many=True)] = ()
    """The paths of layers. Default: one of each size of maps"""


class Field(NamedTuple):
    """A rectangle of pixels: its first and last row and column."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> str:
        """Height and width, in words."""
        return f"{self.bottom - self.top + 1} x {self.right - self.left + 1}"


def run(options: ReceptiveOptions) -> int:
    """Compute, measure and draw; return 0.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    subject = options.subject()
    layers = subject.layers(options.layers)
    batch = subject.batch(options.pictures(subject))
    (shown,) = subject.shown(batch[:1])
    rows, kept = [], {}
    for layer in tracked(layers, "layers"):
        field = computed(subject, layer)
        kept[layer] = sizes = measured(subject, layer, batch)
        lit = _DIM * shown
        rectangle = slice(field.top, field.bottom + 1), slice(field.left, field.right + 1)
        # Lighter than black, so that the rectangle is seen also where the picture is black.
        lit[rectangle] = 1 - _LIT * (1 - shown[rectangle])
        rows.append([lit, heat(sizes, 0, float(sizes.amax()))])
        print(
            f"{layer}: computed {field.size} pixels; measured, {_COUNTS:.0%} of the gradient are "
            f"within {extent(sizes).size}"
        )
    figure = sheet(rows, rows=layers, columns=["computed", "measured"], cell=1.6)
    options.keep("receptive", figure, **kept)
    return 0


@torch.no_grad()
def computed(subject: Subject, layer: str) -> Field:
    """Return the smallest rectangle outside of which no pixel reaches the layer's middle unit.

    A pixel that is no number makes one of everything that is computed from it, whatever the
    weights are. How many rows or columns of them, from one side on, it takes until the unit is
    none is found by halving.

    Raises:
        SettingsError: the unit depends on no pixel.
    """
    spec = subject.classifier.input
    # In float64 no library takes Winograd's convolutions, which mix neighbouring pixels.
    module = copy.deepcopy(subject.module).cpu().double()
    lengths = torch.tensor([spec.height, spec.height, spec.width, spec.width])
    least, most = torch.zeros(4, dtype=torch.long), lengths
    if not _reached(module, layer, spec, most).all():
        raise SettingsError(f"--layers {layer}: its middle unit depends on no pixel")
    while (most - least > 1).any():
        half = (least + most) // 2
        reached = _reached(module, layer, spec, half)
        least, most = torch.where(reached, least, half), torch.where(reached, half, most)
    top, bottom, left, right = most.tolist()
    return Field(top - 1, spec.height - bottom, left - 1, spec.width - right)


def _reached(module: nn.Module, layer: str, spec: InputSpec, counts: torch.Tensor) -> torch.Tensor:
    """Return whether so many rows or columns from above, below, left and right reach the unit."""
    images = torch.zeros(4, spec.channels, spec.height, spec.width, dtype=torch.float64)
    above, below, left, right = counts.tolist()
    images[0, :, :above] = torch.nan
    images[1, :, spec.height - below :] = torch.nan
    images[2, :, :, :left] = torch.nan
    images[3, :, :, spec.width - right :] = torch.nan
    with recorded(module, [layer]) as seen:
        module(images)
    return _middle(seen[layer]).isnan().any(1)


def measured(subject: Subject, layer: str, images: torch.Tensor) -> torch.Tensor:
    """Return the mean size of the gradient of the middle unit by each pixel, [height, width].

    Luo et al., Understanding the effective receptive field, 2016; the unit is the sum of
    the layer's channels there.
    """
    total = torch.zeros(images.shape[2:])
    for image in torch.split(images, 1):
        pixels = image.clone().requires_grad_()
        with recorded(subject.module, [layer]) as seen:
            subject.module(pixels)
        (gradient,) = torch.autograd.grad(_middle(seen[layer]).sum(), pixels)
        total += gradient[0].abs().sum(0).cpu()
    return total / len(images)


def extent(sizes: torch.Tensor) -> Field:
    """Return a rectangle that holds at least 95 % of the sum.

    At each of its four sides it leaves out as many rows or columns as hold together at
    most a quarter of the rest.
    """
    ends = []
    for axis in (1, 0):
        along = sizes.sum(axis).cumsum(0) / sizes.sum().clamp(min=torch.finfo(sizes.dtype).tiny)
        spare = (1 - _COUNTS) / 4
        ends += [int((along <= spare).sum()), int((along < 1 - spare).sum())]
    return Field(*ends)


def _middle(maps: torch.Tensor) -> torch.Tensor:
    return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]


COMMAND = Command(name="receptive", options=ReceptiveOptions, run=run)
