"""A pretrained network with a new head: the beginning of fine-tuning."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from foveate_train import registry
from foveate_train.classifier import Argument, Classifier
from foveate_train.errors import ArgumentsError, HeadlessError

# Not 0: a head whose output passes a ReLU, as SqueezeNet's does, would have no gradient there.
_NEW_HEAD = 1e-3


def with_new_head(
    name: str,
    labels: Sequence[str],
    *,
    weights: str | None,
    seed: int,
    arguments: Mapping[str, Argument],
) -> tuple[Classifier, frozenset[str]]:
    """Build a pretrained classifier whose head has other classes.

    The head is whatever depends on the number of classes: the parameters that
    have another shape where the network is built for another number. They are
    drawn from the seed; all others are the pretrained ones.

    Args:
        name: the network's, in the registry.
        labels: the new classes.
        weights: the pretrained ones, as `registry.create` takes them.
        seed: of the new head.
        arguments: of the network, beside `num_classes`.

    Returns:
        the classifier, and the names of its head's parameters.

    Raises:
        ArgumentsError: the network has a fixed number of classes, or refuses an argument.
        TrainError: the pretrained classifier cannot be had, as its subclass says.
    """
    classes = len(labels)
    if "num_classes" in arguments:
        raise ArgumentsError(f"{name}: num_classes is the number of the new labels, {classes}")
    lacking: HeadlessError | None = None
    try:
        pretrained = registry.create(name, weights=weights, **arguments)
    except HeadlessError as error:
        # Self-supervised training leaves no head, and none is needed here.
        lacking = error
        pretrained = _without_head(name, error, seed, arguments)
    try:
        classifier = registry.create(
            name, weights=f"random:{seed}", **{**arguments, "num_classes": classes}
        )
    except ArgumentsError as error:
        raise ArgumentsError(f"{name} cannot have {classes} classes: {error}") from error
    new = _dependent_on_classes(name, classifier.module, classes, arguments)
    if lacking is not None and not any(key.startswith(f"{lacking.layer}.") for key in new):
        raise lacking
    state = {key: value for key, value in pretrained.module.state_dict().items() if key not in new}
    classifier.module.load_state_dict(state, strict=False)
    own = {key: value for key, value in classifier.module.named_parameters() if key in new}
    with torch.no_grad():
        for value in own.values():
            value.mul_(_NEW_HEAD)
    head = frozenset(own)
    # The input is that of the weights, which may differ from the untrained network's.
    said = {key: said for key, said in pretrained.assumptions.items() if key == "weights"}
    found = replace(classifier, labels=tuple(labels), input=pretrained.input, assumptions=said)
    return found, head


def _without_head(
    name: str, error: HeadlessError, seed: int, arguments: Mapping[str, Argument]
) -> Classifier:
    """Build a classifier of weights that lack its head, which is drawn from the seed."""
    classifier = registry.create(name, weights=f"random:{seed}", **arguments)
    classifier.module.load_state_dict(error.state, strict=False)
    said = f"{error.said}, without {error.layer}, which is new"
    return replace(classifier, assumptions={"weights": said})


def _dependent_on_classes(
    name: str, module: nn.Module, classes: int, arguments: Mapping[str, Argument]
) -> set[str]:
    """Return the keys of the state dict whose shapes follow the number of classes."""
    with torch.device("meta"):
        other = registry.create(
            name, weights="random:0", **{**arguments, "num_classes": classes + 1}
        ).module.state_dict()
    return {key for key, value in module.state_dict().items() if other[key].shape != value.shape}
