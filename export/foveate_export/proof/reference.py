"""What torch says: the answers that an exported graph is judged by.

Nothing of the exported graph is used here. The pixels are normalised by the
definition, and the maps come from autograd.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate_export.anatomy.pixels import normalise
from foveate_export.anatomy.taps import Tap, as_maps, tapped
from foveate_export.graph.heads import Head
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
(CVPR 2016), written by the gradient of a head that averages over space;
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
    return Answers(
        logits=logits.detach().float().numpy(),
        cams={method: maps.detach().float().numpy() for method, maps in cams.items()},
        features={
            tap.path: maps.detach().float().numpy()
            for tap, maps in as_maps({tap: tensors[tap] for tap in layers}).items()
        },
    )


def in_float64(classifier: Classifier) -> Classifier:
    """Return a copy of the classifier that computes in float64."""
    return replace(classifier, module=copy.deepcopy(classifier.module).double())


def _explain(
    logits: Tensor, tensors: Mapping[Tap, Tensor], classes: NDArray[np.int64], head: Head
) -> dict[str, Tensor]:
    maps: dict[str, list[Tensor]] = {method: [] for method in head.methods}
    for column in torch.from_numpy(classes).T:
        # Pictures do not touch each other, so one sum gives each its own gradient.
        score = logits.gather(1, column[:, None]).sum()
        activations = [tensors[tap] for tap in head.taps]
        gradients = torch.autograd.grad(score, activations, retain_graph=True)
        by_tap = as_maps(dict(zip(head.taps, gradients, strict=True)))
        for method, target in head.targets.items():
            activation = target.tap.layout.to_nchw(tensors[target.tap])
            maps[method].append(METHODS[method](activation, by_tap[target.tap]))
    return {method: torch.stack(found, 1) for method, found in maps.items()}
