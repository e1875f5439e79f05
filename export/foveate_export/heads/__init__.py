"""The heads whose class activation maps the graph can compute.

A head is the last part of a classifier, from the activations of one layer to
the logits. Each kind is one module with its mathematics in the docstring; the
kinds are tried in the order of `KINDS`, by what the forward pass does and never
by the classifier's name.
"""

from collections.abc import Sequence

from torch import Tensor

from foveate_export.errors import UnsupportedHeadError
from foveate_export.heads.base import Head
from foveate_export.heads.pooled_linear import PooledLinear
from foveate_export.taps import Call

KINDS: tuple[type[Head], ...] = (PooledLinear,)

__all__ = ["KINDS", "Head", "PooledLinear", "find_head"]


def find_head(logits: Tensor, calls: Sequence[Call]) -> Head:
    """Return the head of the classifier whose forward pass is given.

    Args:
        logits: what the classifier returned, [N, classes].
        calls: the calls inside it, as `foveate_export.taps.record` returns them.

    Raises:
        UnsupportedHeadError: no kind fits; the message says why for each.
    """
    reasons = []
    for kind in KINDS:
        try:
            return kind.find(logits, calls)
        except UnsupportedHeadError as error:
            reasons.append(str(error))
    raise UnsupportedHeadError("this head is not supported yet: " + "; ".join(reasons))
