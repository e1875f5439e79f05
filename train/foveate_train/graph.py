"""A picture of a network: its blocks with shapes and parameters, and what leads to what.

torchview follows one picture through the network, and graphviz's `dot` lays the blocks out.
Neither weights nor arithmetic are needed: the network is built on the meta device.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from foveate_train import registry
from foveate_train.errors import MissingPackageError, TrainError

FORMATS = ("svg", "png", "pdf")
_DEPTH = 2
_FAILED, _WRONG_USAGE = 1, 2


def main(name: str, file: str) -> int:
    """Draw the classifier of this name into a file; return the exit code."""
    path = Path(file)
    if path.suffix.removeprefix(".").lower() not in FORMATS:
        print(f"--graph {file}: its name must end with .{', .'.join(FORMATS)}", file=sys.stderr)
        return _WRONG_USAGE
    try:
        draw(name, path)
    except TrainError as error:
        print(f"foveate models: {error}", file=sys.stderr)
        return _FAILED
    return 0


def draw(name: str, file: Path, *, depth: int = _DEPTH) -> None:
    """Draw the classifier of this name into a file, whose suffix names the format.

    Args:
        name: in the registry.
        file: is replaced.
        depth: how many levels of modules are opened.

    Raises:
        MissingPackageError: torchview or the program `dot` is not installed.
        TrainError: there is no such classifier, or the file cannot be written.
    """
    try:
        from graphviz import ExecutableNotFound  # noqa: PLC0415  an extra
        from torchview import draw_graph  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            'a graph needs torchview: pip install "foveate-train[graphs]"'
        ) from error
    with torch.device("meta"):
        classifier = registry.create(name, weights="random:0")
    module, spec = classifier.module.eval(), classifier.input
    _say_parameters(module)
    found = draw_graph(
        module,
        input_size=(1, spec.channels, spec.height, spec.width),
        device="meta",
        depth=depth,
        expand_nested=True,
    )
    try:
        picture = found.visual_graph.pipe(format=file.suffix.removeprefix(".").lower())
        file.write_bytes(picture)
    except ExecutableNotFound as error:
        raise MissingPackageError(
            "a graph needs the program dot: install the package graphviz of your system"
        ) from error
    except OSError as error:
        raise TrainError(f"{file}: cannot be written ({error.strerror})") from error


def _say_parameters(module: nn.Module) -> None:
    """Let each module's class be named after its place and its parameters.

    The name of the class is what torchview writes into a block.
    """
    for path, each in list(module.named_modules()):
        count = sum(parameter.numel() for parameter in each.parameters())
        said = [f"{path}: " if path else "", type(each).__name__]
        if count:
            said.append(f", {count:,} parameters")
        each.__class__ = type("".join(said), (type(each),), {})
