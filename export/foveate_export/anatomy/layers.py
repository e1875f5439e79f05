"""The feature maps that a classifier can return, and which to return by default.

A layer is called by its path in the module, such as `layer2` or `features.4`.
It can be returned when it runs once in a pass and its output is a map whose
layout was found.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from foveate_export.anatomy.layer import Layer, named
from foveate_export.anatomy.recording import Recording
from foveate_export.anatomy.taps import Tap


def feature_layers(recording: Recording) -> list[Layer]:
    """Return the layers that ran in a forward pass, in the order in which they ended."""
    layers = []
    for found in recording.maps:
        path = found.tap.path
        if found.tap.side == "output" and path not in recording.left_out:
            _, channels, height, width = found.tensor.shape
            kind = type(found.module).__name__
            layers.append(Layer(path, kind, channels, height, width, found.tap.layout))
    return layers


def taps_of(layers: Iterable[Layer]) -> list[Tap]:
    """Return where the maps of `layers` are read."""
    return [Tap(layer.path, layout=layer.layout) for layer in layers]


def default_layers(module: nn.Module, layers: Sequence[Layer]) -> list[Layer]:
    """Return the ends of the stages: for each size of map, the last layer of that size.

    Where the network lists its stages itself, as timm's do in `feature_info`,
    these are taken. Otherwise only whole blocks count: the children of the
    network, and, where one of these is an nn.Sequential whose children return
    maps of several sizes, its children in its place. Where no child is a layer,
    all layers count.
    """
    by_path = {layer.path: layer for layer in layers}
    listed = [path for path in _listed_stages(module) if path in by_path]
    if listed:
        return [by_path[path] for path in listed]
    # Blocks that return lists, as CrossViT's do, are no layers, but their parts are.
    blocks = _blocks(module, "", by_path) or list(by_path)
    ends = {(by_path[path].height, by_path[path].width): by_path[path] for path in blocks}
    return [layer for layer in layers if layer in ends.values()]


def select_layers(
    names: Sequence[str] | None,
    module: nn.Module,
    layers: Sequence[Layer],
    left_out: Mapping[str, str] | None = None,
) -> list[Layer]:
    """Return the layers called `names`, each once, or the default ones for None.

    `left_out` says why other modules are no layers.

    Raises:
        UnknownLayerError: a name that is none of `layers`.
    """
    return default_layers(module, layers) if names is None else named(names, layers, left_out)


def _listed_stages(module: nn.Module) -> list[str]:
    stages = getattr(module, "feature_info", None)
    # timm keeps a list of dictionaries, or a FeatureInfo that holds one.
    return [stage["module"] for stage in getattr(stages, "info", stages) or []]


def _blocks(module: nn.Module, prefix: str, layers: dict[str, Layer]) -> list[str]:
    blocks = []
    for name, child in module.named_children():
        path = prefix + name
        inner = [
            (layers[f"{path}.{n}"].height, layers[f"{path}.{n}"].width)
            for n, _ in child.named_children()
            if f"{path}.{n}" in layers
        ]
        if isinstance(child, nn.Sequential) and len(set(inner)) > 1:
            blocks += _blocks(child, path + ".", layers)
        elif path in layers:
            blocks.append(path)
    # Children stand in the order of definition; stages end in that of running.
    order = {path: index for index, path in enumerate(layers)}
    return sorted(blocks, key=order.__getitem__)
