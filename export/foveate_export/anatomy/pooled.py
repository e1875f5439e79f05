"""The maps of average pooling and one linear layer, for every library of arrays.

With activations A [N, C, h, w] and R [N, K, C] the gradient of the logits of K
classes with respect to the mean of A over its cells, the gradient at every cell is
R / (h w), which leaves of the methods of `foveate_export.proof.reference`

    Grad-CAM  = ReLU(sum_k R[c, k] A[k]) / (h w)
    HiResCAM  = sum_k R[c, k] A[k] / (h w)
    LayerCAM  = ReLU(sum_k ReLU(R[c, k]) A[k]) / (h w)

Networks of torch and the graphs of ONNX files, which are edited without torch, have them
of this function. `foveate_export.existing.original` has the formulas in numpy once more:
they are what the edited graph is compared with.
"""

from collections.abc import Callable
from typing import TypeVar

METHODS = ("cam", "gradcam", "hirescam", "layercam")
"""The methods of such a head, the default first."""

DESCRIPTION = "average pooling, one linear layer"

ArrayT = TypeVar("ArrayT")


def by_gradient(
    rows: ArrayT,
    weighed: ArrayT,
    weigh: Callable[[ArrayT], ArrayT],
    relu: Callable[[ArrayT], ArrayT],
    per_cell: Callable[[ArrayT], ArrayT],
) -> dict[str, ArrayT]:
    """Return the maps by a gradient that is `rows` / (h w) at every cell, by method.

    Args:
        rows: the gradient of the logits with respect to the mean, [N, K, C].
        weighed: `weigh` of them.
        weigh: sums the channels of the activations with such weights: [N, K, h, w].
        relu: replaces negative values by 0.
        per_cell: divides by h w.
    """
    mean = per_cell(weighed)
    return {
        "gradcam": relu(mean),
        "hirescam": mean,
        "layercam": per_cell(relu(weigh(relu(rows)))),
    }
