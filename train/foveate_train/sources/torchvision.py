"""The source `torchvision`: its image classifiers, weights and input specifications."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torchvision import models

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.classifier import Argument, Classifier, Criterion, loss_of_logits
from foveate_train.errors import ArgumentsError, WeightsError
from foveate_train.state_dicts import StateDict
from foveate_train.weights import initialising, load, random_seed

# torchvision builds these two as they were published only when it downloads
# the weights itself; the same is said here for weights of any origin. The
# auxiliary heads of GoogLeNet serve its first training alone.
_AS_PUBLISHED: dict[str, dict[str, Argument]] = {
    "googlenet": {"transform_input": True, "init_weights": True, "aux_logits": False},
    "inception_v3": {"transform_input": True, "init_weights": True},
}
_AUXILIARY_HEADS = ("aux1", "aux2", "AuxLogits")
# The weight of Inception V3's auxiliary loss, as its authors trained it.
_AUXILIARY = 0.4


def names() -> Sequence[str]:
    """Return torchvision's image classifiers."""
    return sorted(models.list_models(module=models))


def create(network: str, weights: str | None, arguments: dict[str, Argument]) -> Classifier:
    """Build a network of torchvision; without weights, its default ones are downloaded."""
    published = models.get_model_weights(network)
    entry = _entry(published, weights)
    seed = None if weights is None else random_seed(weights)
    said = ""
    if weights is None or weights in published.__members__:
        module = _download(network, entry, arguments)
    else:
        settings = _AS_PUBLISHED.get(network, {}) | _image_size(network, entry) | arguments
        with initialising(seed):
            module = _build(network, None, settings)
        if seed is None:
            said = load(module, weights, _without_auxiliary_heads)
    if isinstance(module, models.GoogLeNet):
        module.aux_logits = False  # in training, too, its output is the logits alone
    classes = arguments.get("num_classes", len(entry.meta["categories"]))
    categories: list[str] = entry.meta["categories"]
    labels = categories if classes == len(categories) else map(str, range(int(classes or 0)))
    return Classifier(
        name=f"torchvision:{network}",
        arguments=arguments,
        module=module,
        input=_input_spec(entry, arguments.get("image_size")),
        labels=tuple(labels),
        loss=_loss_with_auxiliary if network == "inception_v3" else loss_of_logits,
        assumptions={"weights": said} if said else {},
    )


def _loss_with_auxiliary(
    output: torch.Tensor | models.InceptionOutputs, criterion: Criterion
) -> torch.Tensor:
    if isinstance(output, torch.Tensor):  # built without the auxiliary head
        return criterion(output)
    return criterion(output.logits) + _AUXILIARY * criterion(output.aux_logits)


def imagenet_labels() -> tuple[str, ...]:
    """Return the short names of the 1000 classes of ImageNet, by index."""
    return tuple(models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def _entry(published: type[models.WeightsEnum], weights: str | None) -> models.WeightsEnum:
    """Return the published weights whose input specification applies.

    A file under its published name is known by it; one under another name, or
    random weights, is taken for the default.
    """
    default: models.WeightsEnum = published.DEFAULT
    if weights is None:
        return default
    for name, entry in published.__members__.items():
        if weights == name or Path(weights).name == Path(entry.url).name:
            return entry
    return default


def _download(network: str, entry: models.WeightsEnum, arguments: dict[str, Argument]) -> nn.Module:
    try:
        return _build(network, entry, arguments)
    except OSError as error:
        raise WeightsError(
            f"torchvision:{network}: the weights at {entry.url} cannot be downloaded ({error}); "
            "give a file with --weights FILE, or --weights random:SEED"
        ) from error


def _build(
    network: str, entry: models.WeightsEnum | None, arguments: dict[str, Argument]
) -> nn.Module:
    try:
        module: nn.Module = models.get_model(network, weights=entry, **arguments)
    except (TypeError, ValueError) as error:
        raise ArgumentsError(f"torchvision:{network}: {error}") from error
    return module


def _without_auxiliary_heads(state: StateDict, module: nn.Module) -> StateDict:
    """Drop the auxiliary heads that a published file holds and `module` does without."""
    missing = tuple(
        f"{head}." for head in _AUXILIARY_HEADS if getattr(module, head, module) is None
    )
    return {key: value for key, value in state.items() if not key.startswith(missing)}


def _image_size(network: str, entry: models.WeightsEnum) -> dict[str, Argument]:
    """Return the argument that fits a vision transformer to the pictures of its weights."""
    return {"image_size": entry.meta["min_size"][0]} if network.startswith("vit_") else {}


def _input_spec(entry: models.WeightsEnum, image_size: Argument) -> InputSpec:
    """Return the weights' input specification, at another size where one is given."""
    preset = entry.transforms()
    side: int = preset.crop_size[0]
    resize: int = preset.resize_size[0]
    if isinstance(image_size, int):
        side, resize = image_size, round(image_size * resize / side)
    return InputSpec(
        height=side,
        width=side,
        channels=3,
        resize=resize,
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
