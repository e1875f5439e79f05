"""Vector-Jacobian products of the operators that classifiers are made of.

A rule takes an operation y = f(x, ...), evaluated on a batch, and the cotangents
of K classes, dz[class] / dy, float [K, *y.shape], and returns the cotangents of
the inputs, [K, *x.shape], by argument name. The classes stand first, so that a
factor of y's shape broadcasts, and a rule does not care which axis the pictures are.

The derivatives are those of PyTorch, also where a function has none: 0 at the
kink of the ReLU, all to the first of several equal maxima of a pooling's window,
and equal parts to those of `amax`.
"""

from foveate_export.graph.vjp.rules import linear, normalisation, pointwise, pooling, shapes
from foveate_export.graph.vjp.rules.base import RULES, unsupported
from foveate_export.graph.vjp.rules.linear import attention_weights, is_plain_attention
from foveate_export.graph.vjp.rules.pooling import SELECTING, preserves_sums

__all__ = [
    "RULES",
    "SELECTING",
    "attention_weights",
    "is_plain_attention",
    "linear",
    "normalisation",
    "pointwise",
    "pooling",
    "preserves_sums",
    "shapes",
    "unsupported",
]
