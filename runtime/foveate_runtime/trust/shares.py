"""Probabilities of logits in double precision, and what they lack to 1.

A confident classifier gives probabilities that round to 1. What such a probability
lacks to 1 still differs between pictures, so it is computed separately.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import Scores

Logits = NDArray[Any]
Doubles = NDArray[np.float64]


def softmax(logits: Logits) -> Doubles:
    """Return exp(z[c]) / sum_k exp(z[k]) of `logits` [N, classes]."""
    powers = _powers(logits)
    shares: Doubles = powers / powers.sum(axis=1, keepdims=True)
    return shares


def softmax_lack(logits: Logits) -> Doubles:
    """Return 1 minus the softmax of `logits` [N, classes], exact near 0 too."""
    powers = _powers(logits)
    rows = np.arange(len(powers))
    best = powers.argmax(axis=1)
    others = powers.copy()
    others[rows, best] = 0.0
    rest = others.sum(axis=1)
    total = rest + powers[rows, best]
    lack: Doubles = 1 - powers / total[:, None]
    lack[rows, best] = rest / total
    return lack


def sigmoid(logits: Logits) -> Doubles:
    """Return 1 / (1 + exp(-z)) of `logits`."""
    shares: Doubles = np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
    return shares


def probabilities(logits: Logits, scores: Scores) -> Doubles:
    """Return the probabilities of the classes, or those of labels that are independent."""
    return sigmoid(logits) if scores == "sigmoid" else softmax(logits)


def lack(logits: Logits, scores: Scores) -> Doubles:
    """Return 1 minus the probabilities, exact near 0 too."""
    return sigmoid(-logits) if scores == "sigmoid" else softmax_lack(logits)


def _powers(logits: Logits) -> Doubles:
    wide = logits.astype(np.float64)
    powers: Doubles = np.exp(wide - wide.max(axis=1, keepdims=True))
    return powers
