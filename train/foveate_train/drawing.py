"""Figures for pages; matplotlib draws them, which is an extra.

A picture of a figure is float32 [height, width, 3], red, green and blue, 0 to 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from foveate_train.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "inferno"
"""matplotlib's name of the colours of activations: black is low, yellow is high."""

_GAP = 4
_SIDE = 84
"""What pictures are enlarged to at least, in pixels; a multiple of 28, 14, 7, 6 and 4."""
# No picture holds this colour, so that white pixels at a border are seen.
_PAPER = torch.tensor([0.80, 0.87, 0.95])


def new_figure(width: float, height: float, *, dpi: int = 110) -> "Figure":
    """Return an empty figure of so many inches, attached to no window.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            'drawing needs matplotlib: pip install "foveate-train[plots]"'
        ) from error
    return Figure(figsize=(width, height), dpi=dpi, facecolor="white", layout="constrained")


def saving(figure: "Figure") -> Callable[[Path | BytesIO], object]:
    """Return what saves a figure as a PNG that takes little room."""
    return partial(figure.savefig, pil_kwargs={"optimize": True})


def grey(values: torch.Tensor) -> torch.Tensor:
    """Turn values [height, width], 0 to 1, into a grey picture; what lies outside is cut."""
    return values.float().clamp(0, 1)[:, :, None].expand(-1, -1, 3)


def colours(pixels: torch.Tensor) -> torch.Tensor:
    """Turn one picture [1, C, H, W], 0 to 1, into red, green and blue."""
    return pixels[0, :3].cpu().permute(1, 2, 0).expand(-1, -1, 3)


def heat(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Turn values [height, width] into colours between `low` and `high`."""
    from matplotlib import colormaps  # noqa: PLC0415  an extra

    scaled = (values.float() - low) / max(high - low, torch.finfo(torch.float32).tiny)
    return torch.from_numpy(colormaps[COLOURS](scaled.clamp(0, 1).numpy())[:, :, :3]).float()


def overlay(picture: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Lay the values [height, width] above 0 over a picture [height, width, 3]."""
    return 0.5 * picture + 0.5 * heat(values, 0, float(values.amax()))


def sheet(
    pictures: Sequence[Sequence[torch.Tensor]],
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    cell: float = 0.62,
    scale: tuple[float, float] | None = None,
) -> "Figure":
    """Lay pictures out in rows, with a name for each row and each column.

    Args:
        pictures: by row and column; smaller ones are enlarged to the size of the largest.
        rows: names on the left; none where empty.
        columns: names on top; none where empty.
        cell: the height of a picture in inches.
        scale: the least and the largest value of the colours, for a scale on the right.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    height, width = (
        max(_SIDE, *(picture.shape[axis] for row in pictures for picture in row)) for axis in (0, 1)
    )
    count = max(map(len, pictures))
    size = (len(pictures) * (height + _GAP) + _GAP, count * (width + _GAP) + _GAP)
    canvas = _PAPER.repeat(*size, 1)
    for row, line in enumerate(pictures):
        for column, picture in enumerate(line):
            top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
            channels_first = picture.permute(2, 0, 1)[None]
            enlarged = functional.interpolate(channels_first, (height, width))[0]
            canvas[top : top + height, left : left + width] = enlarged.permute(1, 2, 0)
    inches = cell / height
    side = 0.35 + 0.075 * max(map(len, rows), default=0) + (0.8 if scale else 0)
    # Slightly more than the canvas needs, for the names.
    figure = new_figure(
        canvas.shape[1] * inches + side, canvas.shape[0] * inches + (0.4 if columns else 0.1)
    )
    axes = figure.add_subplot()
    image = axes.imshow(canvas.numpy(), interpolation="nearest")
    axes.set_xticks([_GAP + c * (width + _GAP) + width / 2 for c in range(len(columns))], columns)
    axes.set_yticks([_GAP + r * (height + _GAP) + height / 2 for r in range(len(rows))], rows)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=8)
    axes.spines[:].set_visible(False)
    if scale:
        image.set_cmap(COLOURS)
        image.set_clim(*scale)
        figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.02).ax.tick_params(labelsize=8)
    return figure
