"""A layer that returns a feature map, wherever it was found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveate_export.anatomy.layout import NCHW, Layout
from foveate_export.errors import UnknownLayerError


@dataclass(frozen=True)
class Layer:
    """A module, or a node of an ONNX file, whose output is a map of `height` x `width` cells.

    `path` is the name that people give it, `kind` the module's class or the
    node's operator, `layout` the order of the output's axes in the network.
    """

    path: str
    kind: str
    channels: int
    height: int
    width: int
    layout: Layout = NCHW


def named(
    names: Sequence[str], layers: Sequence[Layer], left_out: Mapping[str, str] | None = None
) -> list[Layer]:
    """Return the layers called `names`, each once.

    Args:
        names: the paths.
        layers: all that there are.
        left_out: why others are none, by their paths.

    Raises:
        UnknownLayerError: a name that is none of `layers`.
    """
    by_path = {layer.path: layer for layer in layers}
    for name in names:
        if name not in by_path:
            raise UnknownLayerError(name, list(by_path), (left_out or {}).get(name))
    return [by_path[name] for name in dict.fromkeys(names)]
