"""The source `timm`: PyTorch Image Models, with their weights and input specifications."""

import math
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from statistics import fmean
from types import MappingProxyType
from typing import Any, cast

import huggingface_hub
import timm
from pydantic import ValidationError
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from foveate_runtime.bundle.manifest import Fit, InputSpec, faults
from foveate_train.classifier import Argument, Classifier
from foveate_train.errors import ArgumentsError, WeightsError
from foveate_train.sources.torchvision import imagenet_labels
from foveate_train.weights import Adapt, as_is, initialising, load, random_seed

_CONNECT_SECONDS = 5
_FITS: Mapping[str, Fit] = MappingProxyType({"center": "crop", "squash": "squash", "border": "pad"})
"""By timm's `crop_mode`. The colour of its border is the mean, as it is where `fill` is empty."""


@cache
def names() -> Sequence[str]:
    """Return timm's networks, bare and with the tags of their weights."""
    return sorted({*timm.list_models(), *timm.list_pretrained()})


def create(network: str, weights: str | None, arguments: dict[str, Argument]) -> Classifier:
    """Build a network of timm; without weights, its default ones are downloaded."""
    name = f"timm:{network}"
    if weights is None:
        return describe(name, _download(network, arguments), arguments)
    module, assumptions = build(network, weights, arguments)
    return replace(describe(name, module, arguments), assumptions=assumptions)


def build(
    network: str, weights: str, arguments: dict[str, Argument], adapt: Adapt = as_is
) -> tuple[nn.Module, dict[str, str]]:
    """Build a network of timm with weights from a file, or random ones.

    Returns:
        the network, and what was assumed of the file.
    """
    seed = random_seed(weights)
    with initialising(seed):
        module = _construct(network, arguments)
    said = load(module, weights, adapt) if seed is None else ""
    return module, {"weights": said} if said else {}


def describe(
    name: str, module: nn.Module, arguments: dict[str, Argument], spec: InputSpec | None = None
) -> Classifier:
    """Make a classifier of a network of timm, by the metadata that it carries, or with `spec`.

    Raises:
        ArgumentsError: if the network has no classifying head, or takes channels
            that its metadata does not know.
    """
    classes: int = getattr(module, "num_classes", 0)
    if classes < 1:
        raise ArgumentsError(f"{name} has no classes; add one with the argument num_classes=N")
    return Classifier(
        name=name,
        arguments=arguments,
        module=module,
        input=spec or _own_input(name, module, arguments),
        labels=_labels(classes),
    )


def _own_input(name: str, module: nn.Module, arguments: Mapping[str, Argument]) -> InputSpec:
    configuration = dict(cast("Mapping[str, Any]", module.pretrained_cfg))
    if isinstance(side := arguments.get("img_size"), int):
        configuration["input_size"] = (configuration["input_size"][0], side, side)
    spec = input_spec(name, configuration)
    channels = arguments.get("in_chans", spec.channels)
    if channels == 1 != spec.channels:
        # As timm adds up the weights of the colours.
        mean, std = ((fmean(values),) for values in (spec.mean, spec.std))
        spec = spec.changed(channels=1, mean=mean, std=std)
    if channels != spec.channels:
        raise ArgumentsError(
            f"{name} has no mean and std for {channels} channels (in_chans); "
            "a function that returns the network may say them"
        )
    return spec


def _construct(
    network: str, arguments: Mapping[str, object], *, pretrained: bool = False
) -> nn.Module:
    try:
        module: nn.Module = timm.create_model(network, pretrained=pretrained, **arguments)
    except (TypeError, AssertionError) as error:
        raise ArgumentsError(f"timm:{network}: {error}") from error
    return module


def _download(network: str, arguments: dict[str, Argument]) -> nn.Module:
    """Build a network with its default weights, fetched by timm's own code.

    The Hugging Face client retries for a minute where there is no network, so
    whether the hub answers is asked first; weights in its cache need no hub.
    """
    configuration = timm.get_pretrained_cfg(network)
    advice = "give a file with --weights FILE, or --weights random:SEED"
    if configuration is None or not configuration.has_weights:
        raise WeightsError(f"timm:{network} has no published weights; {advice}")
    repository = configuration.hf_hub_id
    cached = repository and huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(cached, str):
        local = {**arguments, "pretrained_cfg_overlay": {"file": cached}}
        return _construct(network, local, pretrained=True)
    try:
        if repository:
            reach(huggingface_hub.constants.ENDPOINT)
        return _construct(network, arguments, pretrained=True)
    except OSError as error:
        raise WeightsError(
            f"timm:{network}: the weights cannot be downloaded ({error}); {advice}"
        ) from error


def reach(address: str) -> None:
    """Raise OSError unless a server answers at `address`."""
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310  the library's own address
    try:
        urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError:
        return


def _labels(classes: int) -> tuple[str, ...]:
    """Name the classes of a head of this size, as timm tells data sets apart by it."""
    subset = infer_imagenet_subset({"num_classes": classes})
    if classes == len(imagenet_labels()):
        return imagenet_labels()
    if subset is None:
        return tuple(map(str, range(classes)))
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(classes))


def input_spec(name: str, configuration: Mapping[str, Any]) -> InputSpec:
    """Return the input of timm's evaluation (`timm.data.transforms_factory`).

    Raises:
        ArgumentsError: no input specification says what timm does.
    """
    channels, height, width = configuration["input_size"]
    mode = configuration.get("crop_mode") or "center"
    if mode not in _FITS:
        raise ArgumentsError(f"{name}: no fit does what its crop_mode {mode!r} says")
    # Where that is less than the input, and would set the picture in black, the picture fills it.
    shorter = min(height, width)
    resize = max(shorter, math.floor(shorter / configuration["crop_pct"]))
    if _FITS[mode] == "crop" and height != width and resize > shorter:
        raise ArgumentsError(
            f"{name}: an input of {height} x {width} is cropped out of what covers it "
            f"with a crop_pct of 1, and the network's is {configuration['crop_pct']}"
        )
    try:
        return InputSpec(
            height=height,
            width=width,
            channels=channels,
            resize=resize,
            interpolation=configuration["interpolation"],
            mean=tuple(configuration["mean"]),
            std=tuple(configuration["std"]),
            fit=_FITS[mode],
        )
    except ValidationError as error:
        raise ArgumentsError(f"{name}: the input of its configuration: {faults(error)}") from error
