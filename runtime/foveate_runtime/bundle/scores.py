"""Computes scores from logits, by the manifest."""

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import Scores


def score(logits: NDArray[np.float32], kind: Scores) -> NDArray[np.float32]:
    """Return the scores of `logits`, float32 [n, classes], in their shape.

    With z the logits of one picture, `softmax` is exp(z[c]) / sum_k exp(z[k]), `sigmoid` is
    1 / (1 + exp(-z[c])), and `none` is z[c] itself. No logit is too large for either.
    """
    if kind == "none":
        return logits
    scores: NDArray[np.float32]
    if kind == "sigmoid":
        scores = np.exp(-np.logaddexp(0, -logits))
        return scores
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = exponentials / exponentials.sum(axis=1, keepdims=True)
    return scores
