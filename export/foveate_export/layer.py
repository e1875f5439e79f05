"""A layer that returns a feature map, wherever it was found."""

from collections.abc import Sequence
from dataclasses import dataclass

from foveate_export.errors import UnknownLayerError


@dataclass(frozen=True)
class Layer:
    """A module, or a node of an ONNX file, whose output is a map: [N, channels, height, width].

    `path` is the name that people give it, `kind` the module's class or the
    node's operator.
    """

    path: str
    kind: str
    channels: int
    height: int
    width: int


def named(names: Sequence[str], layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers called `names`, each once.

    Raises:
        UnknownLayerError: a name that is none of `layers`.
    """
    by_path = {layer.path: layer for layer in layers}
    for name in names:
        if name not in by_path:
            raise UnknownLayerError(name, list(by_path))
    return [by_path[name] for name in dict.fromkeys(names)]
