"""What torch says: the answers that an exported graph is judged by.

Nothing of the exported graph is used here. The pixels are normalised by the
definition, and the maps come from autograd.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate_export.anatomy.pixels import normalise
from foveate_export.anatomy.taps import Tap, as_maps, tapped
from foveate_export.graph.heads import Head
from foveate_export.graph.heads.base import Held
from foveate_export.proof.attention import maps_of_attention
from foveate_export.proof.comparison import Answers
from foveate_train.activation_maps import METHODS
from foveate_train.classifier import Classifier


def answer(
    classifier: Classifier,
    images: NDArray[np.uint8],
    *,
    layers: Sequence[Tap] = (),
    head: Head | None = None,
    classes: NDArray[np.int64] | None = None,
) -> Answers:
    """Classify `images` in torch, and explain `classes` by autograd.

    Args:
        classifier: the classifier, in evaluation mode; computed in the type of
            its parameters.
        images: uint8 [N, H, W, C].
        layers: the outputs of modules to return.
        head: says which activations to weigh, and by which methods.
        classes: for each image the class indices to explain, int64 [N, K]; None
            for no maps.
    """
    explained = head if classes is not None else None
    wanted = [*layers, *explained.taps] if explained else layers
    dtype = next((p.dtype for p in classifier.module.parameters()), torch.float32)
    pixels = normalise(images, classifier.input, dtype)
    # Where every parameter is frozen, the pixels still carry the gradient.
    pixels.requires_grad_(explained is not None)
    with torch.set_grad_enabled(explained is not None):
        with tapped(classifier.module, wanted) as tensors:
            logits = classifier.module(pixels)
        cams: dict[str, Tensor] = {}
        sizes: dict[str, Tensor] = {}
        if explained and classes is not None:
            cams, sizes = _explain(logits, tensors, classes, explained)
            if explained.held is not None:
                with (
                    _holding(classifier.module, explained.held),
                    tapped(classifier.module, explained.taps) as again,
                ):
                    linear = classifier.module(pixels)
                maps, largest = _explain(linear, again, classes, explained)
                cams["cam"], sizes["cam"] = maps["cam"], largest["cam"]
            if explained.attention is not None:
                asked = torch.from_numpy(classes)
                cams |= maps_of_attention(classifier.module, pixels, asked, explained.attention)
    return Answers(
        logits=logits.detach().float().numpy(),
        cams={method: maps.detach().float().numpy() for method, maps in cams.items()},
        sizes={method: size.detach().float().numpy() for method, size in sizes.items()},
        features={
            tap.path: maps.detach().float().numpy()
            for tap, maps in as_maps({tap: tensors[tap] for tap in layers}).items()
        },
    )


@contextmanager
def _holding(module: nn.Module, held: Held) -> Iterator[None]:
    """Let autograd take the size that a module divides by for constant."""

    def hold(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        vector = inputs[0].flatten(1)
        if held.kind == "layer_norm":
            vector = vector - vector.mean(1, keepdim=True)
        squares = vector.square()
        sums = squares.sum(1) if held.kind == "cosine" else squares.mean(1) + held.eps
        size = sums.sqrt().reshape(-1, *[1] * (output.ndim - 1))
        bias = None if held.kind == "cosine" else getattr(layer, "bias", None)
        # One value a channel, on whichever axis the channels of the vector are.
        shift: Any = 0 if bias is None else bias.reshape(output.shape[1:])
        # The quotient is 1; multiplied with the size, what was divided by it is linear again.
        held_constant: Tensor = (output - shift) * (size / size.detach()) + shift
        return held_constant

    handle = module.get_submodule(held.path).register_forward_hook(hold)
    try:
        yield
    finally:
        handle.remove()


def in_float64(classifier: Classifier) -> Classifier:
    """Return a copy of the classifier that computes in float64."""
    return replace(classifier, module=copy.deepcopy(classifier.module).double())


def _explain(
    logits: Tensor, tensors: Mapping[Tap, Tensor], classes: NDArray[np.int64], head: Head
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the maps, [N, K, h, w], and their sizes before a ReLU, [N, K], by method."""
    targets = head.without_attention.targets
    maps: dict[str, list[Tensor]] = {method: [] for method in targets}
    sizes: dict[str, list[Tensor]] = {method: [] for method in targets}
    for column in torch.from_numpy(classes).T:
        # Pictures do not touch each other, so one sum gives each its own gradient.
        score = logits.gather(1, column[:, None]).sum()
        taps = head.without_attention.taps
        activations = [tensors[tap] for tap in taps]
        gradients = torch.autograd.grad(score, activations, retain_graph=True)
        by_tap = as_maps(dict(zip(taps, gradients, strict=True)))
        for method, target in targets.items():
            activation = target.tap.layout.to_nchw(tensors[target.tap])
            found = METHODS[method](activation, by_tap[target.tap])
            # Of the negated activations, what a ReLU has taken away.
            taken = METHODS[method](-activation, by_tap[target.tap])
            maps[method].append(found)
            sizes[method].append(torch.maximum(found.abs(), taken.abs()).amax((1, 2)))
    return (
        {method: torch.stack(columns, 1) for method, columns in maps.items()},
        {method: torch.stack(columns, 1) for method, columns in sizes.items()},
    )
