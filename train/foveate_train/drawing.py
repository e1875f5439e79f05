"""Figures for pages; matplotlib draws them, which is an extra."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from foveate_train.errors import MissingPackageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def saving(figure: "Figure") -> Callable[[Path], object]:
    """Return what saves a figure as a PNG that takes little room."""
    return partial(figure.savefig, pil_kwargs={"optimize": True})
