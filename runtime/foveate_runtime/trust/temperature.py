"""Temperature scaling: one number that calibrates the probabilities.

Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017). The temperature T
minimises the mean negative log-likelihood of the labels under softmax(z / T), or of one
label under sigmoid(z / T). It is convex in the inverse temperature b = 1 / T, and its
derivative there,

    softmax    mean(sum_c p[c] z[c] - z[y])
    sigmoid    mean((p - y) z)

grows with b, so that its zero is found by bisection. It has none where every picture is
right, or where the logits say less than chance.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.trust.shares import Doubles, Logits, sigmoid, softmax

_COLDEST, _HOTTEST = -10.0, 10.0
"""The logarithms of the inverse temperatures between which one is looked for."""
_HALVINGS = 80

ENOUGH = 20
"""How many pictures with a label, and without it, a temperature of the label needs."""


def fit_softmax(logits: Logits, targets: NDArray[np.int64]) -> float | None:
    """Return the temperature of logits [N, classes] with the classes `targets` [N].

    None where the likelihood grows without end, as it does where every picture is right.
    """
    wide = logits.astype(np.float64)
    right = wide[np.arange(len(wide)), targets]

    def slope(inverse: float) -> float:
        return float(((softmax(inverse * wide) * wide).sum(axis=1) - right).mean())

    return _minimum(slope)


def fit_sigmoid(logits: Logits, present: NDArray[np.bool_]) -> list[float] | None:
    """Return the temperature of each label of logits [N, labels]; `present` is of that shape.

    A label of too few pictures gets the temperature of all labels together. None where
    that does not exist.
    """
    wide = logits.astype(np.float64)
    shared = _fit_labels(wide, present)
    if shared is None:
        return None
    with_label = present.sum(axis=0)
    enough = np.minimum(with_label, len(present) - with_label) >= ENOUGH
    return [
        (_fit_labels(wide[:, label], present[:, label]) if enough[label] else None) or shared
        for label in range(wide.shape[1])
    ]


def _fit_labels(logits: Doubles, present: NDArray[np.bool_]) -> float | None:
    return _minimum(lambda inverse: float(((sigmoid(inverse * logits) - present) * logits).mean()))


def _minimum(slope: Callable[[float], float]) -> float | None:
    """Return 1 / b where the growing `slope` of b crosses zero, None where it does not."""
    low, high = _COLDEST, _HOTTEST
    if slope(np.exp(low)) >= 0 or slope(np.exp(high)) <= 0:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(np.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return float(np.exp(-(low + high) / 2))
