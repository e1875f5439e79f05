"""`foveate visualize cam`: where a network sees its classes."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch.nn import functional

from foveate_train.activation_maps import METHODS
from foveate_train.drawing import overlay, sheet
from foveate_train.errors import SettingsError
from foveate_train.options import As, Command
from foveate_train.progress import tracked
from foveate_train.recording import recorded
from foveate_train.visualize.options import PictureOptions
from foveate_train.visualize.subject import Picture, Subject, shortened

_BEST = 5
_ALL = "all"
_METHODS = ("gradcam", "hirescam", "layercam")


class CamOptions(PictureOptions):
    """Draw class activation maps: of the five best classes of a picture side by side, or of one.

    A row is a method at a layer. Without --layers, it is the last that gives maps; all are one of
    each size of maps. Each map has
    its own colours, from 0 to its largest value: what speaks against a class stays dark.
    cam-PICTURE-LAYER.npy holds float32 [methods, classes, height, width].

        foveate visualize cam package:efficientnet_lite0 cat.jpg --class tabby --out cam
    """

    layers: Annotated[tuple[str, ...], As("LAYER", many=True)] = ()
    """The paths of layers, such as layer4 or blocks.4, or the word all"""
    methods: Annotated[
        tuple[Literal["gradcam", "hirescam", "layercam", "all"], ...], As("METHOD", many=True)
    ] = ("gradcam",)
    """gradcam, hirescam, layercam, or all. Default: gradcam"""
    class_: Annotated[str | None, As("CLASS", names=("--class",))] = None
    """The number or the label of one class. Default: the five best of each picture"""


def run(options: CamOptions) -> int:
    """Draw the maps of each picture; return 0.

    Raises:
        TrainError: whatever stands in the way, as its subclass says.
    """
    subject = options.subject()
    every = options.layers == (_ALL,)
    layers = subject.layers(() if every else options.layers or subject.stages()[-1:])
    chosen = None if options.class_ is None else [subject.class_number(options.class_)]
    for picture in tracked(options.pictures(subject), "pictures"):
        _draw(options, subject, picture, layers, chosen)
    return 0


def explained(
    subject: Subject,
    image: torch.Tensor,
    layers: Sequence[str],
    methods: Sequence[str],
    classes: Sequence[int] | None,
) -> tuple[Sequence[int], torch.Tensor, dict[str, dict[str, torch.Tensor]]]:
    """Explain classes of one picture.

    Args:
        subject: the classifier.
        image: the input, float32 [1, C, H, W].
        layers: whose activations are weighed.
        methods: of `foveate_train.activation_maps`.
        classes: None for the five best.

    Returns:
        the classes, the probabilities of all, [all classes], and the maps
        [classes, height, width] by layer and method.

    Raises:
        SettingsError: the logits do not depend on a layer.
    """
    with recorded(subject.module, layers) as seen:
        logits = subject.module(image.requires_grad_())
    found = logits[0].topk(min(_BEST, logits.shape[1])).indices.tolist()
    classes = found if classes is None else classes
    maps: dict[str, dict[str, list[torch.Tensor]]] = {
        layer: {method: [] for method in methods} for layer in layers
    }
    for number in classes:
        gradients = torch.autograd.grad(
            logits[0, number],
            [seen[layer] for layer in layers],
            retain_graph=True,
            allow_unused=True,
        )
        for layer, gradient in zip(layers, gradients, strict=True):
            if gradient is None:
                raise SettingsError(f"--layers {layer}: the logits do not depend on it")
            for method, each in maps[layer].items():
                each.append(METHODS[method](seen[layer].detach(), gradient)[0])
    stacked = {
        layer: {method: torch.stack(each).cpu() for method, each in by_method.items()}
        for layer, by_method in maps.items()
    }
    return classes, logits.detach()[0].softmax(0).cpu(), stacked


def _draw(
    options: CamOptions,
    subject: Subject,
    picture: Picture,
    layers: Sequence[str],
    chosen: Sequence[int] | None,
) -> None:
    methods = list(_METHODS if _ALL in options.methods else dict.fromkeys(options.methods))
    image = subject.batch([picture])
    classes, probabilities, maps = explained(subject, image, layers, methods, chosen)
    (seen,) = subject.shown(image)
    rows, names, kept = [], [], {}
    for layer in layers:
        each = torch.stack([maps[layer][method] for method in methods])
        kept[layer] = each
        large = functional.interpolate(each, seen.shape[:2], mode="bilinear")
        for method, of_classes in zip(methods, large, strict=True):
            rows.append([seen, *(overlay(seen, one) for one in of_classes)])
            names.append(f"{layer}\n{method}")
    labels = [shortened(subject.classifier.labels[number]) for number in classes]
    heads = [
        f"{label}\n{probabilities[number]:.1%}"
        for label, number in zip(labels, classes, strict=True)
    ]
    figure = sheet(rows, rows=names, columns=[picture.title, *heads], cell=1.3)
    options.keep(f"cam-{picture.name}", figure, **kept)


COMMAND = Command(name="cam", options=CamOptions, run=run)
