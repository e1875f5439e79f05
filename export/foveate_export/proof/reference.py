"""What torch says: the answers that an exported graph is judged by.

Nothing of the exported graph is used here. The pixels are normalised by the
definition, and the maps come from autograd.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from foveate_train.classifier import Classifier

METHODS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cam": lambda activations, gradient: (gradient.sum((2, 3), keepdim=True) * activations).sum(1),
    "gradcam": lambda activations, gradient: (
        (gradient.mean((2, 3), keepdim=True) * activations).sum(1).relu()
    ),
    "hirescam": lambda activations, gradient: (gradient * activations).sum(1),
    "layercam": lambda activations, gradient: (gradient.relu() * activations).sum(1).relu(),
}
"""The map of one class by method, [N, h, w], from the activations of a layer and
the gradient of the class's logit with respect to them, both [N, C, h, w].

`cam` is Zhou et al., "Learning Deep Features for Discriminative Localization"
(CVPR 2016), written by the gradient of a head that averages over space, with the
size that a head may divide by held constant;
`gradcam` Selvaraju et al., "Grad-CAM" (ICCV 2017); `hirescam` Draelos and Carin,
"Use HiResCAM instead of Grad-CAM" (2020), which has no ReLU, so that where one
linear layer follows the map sums to the logit less its bias; `layercam` Jiang et
al., "LayerCAM" (IEEE TIP 2021)."""


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
        cams = {}
        if explained and classes is not None:
            cams = _explain(logits, tensors, classes, explained)
            if explained.held is not None:
                with (
                    _holding(classifier.module, explained.held),
                    tapped(classifier.module, explained.taps) as again,
                ):
                    linear = classifier.module(pixels)
                cams["cam"] = _explain(linear, again, classes, explained)["cam"]
            if explained.attention is not None:
                asked = torch.from_numpy(classes)
                cams |= maps_of_attention(classifier.module, pixels, asked, explained.attention)
    return Answers(
        logits=logits.detach().float().numpy(),
        cams={method: maps.detach().float().numpy() for method, maps in cams.items()},
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
        shift: Any = 0 if bias is None else bias.reshape(1, -1, *[1] * (output.ndim - 2))
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
) -> dict[str, Tensor]:
    targets = head.without_attention.targets
    maps: dict[str, list[Tensor]] = {method: [] for method in targets}
    for column in torch.from_numpy(classes).T:
        # Pictures do not touch each other, so one sum gives each its own gradient.
        score = logits.gather(1, column[:, None]).sum()
        taps = head.without_attention.taps
        activations = [tensors[tap] for tap in taps]
        gradients = torch.autograd.grad(score, activations, retain_graph=True)
        by_tap = as_maps(dict(zip(taps, gradients, strict=True)))
        for method, target in targets.items():
            activation = target.tap.layout.to_nchw(tensors[target.tap])
            maps[method].append(METHODS[method](activation, by_tap[target.tap]))
    return {method: torch.stack(found, 1) for method, found in maps.items()}
