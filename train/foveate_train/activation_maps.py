"""Class activation maps by their definitions."""

from collections.abc import Callable, Mapping

from torch import Tensor

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
