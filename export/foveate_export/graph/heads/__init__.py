"""The heads whose class activation maps the graph can compute.

A head is the last part of a classifier, from the activations of one layer to
the logits. Each kind is one module with its mathematics in the docstring; the
kinds are tried in the order of `KINDS`, by what the forward pass does and never
by the classifier's name.
"""

from collections.abc import Callable, Sequence

from foveate_export.anatomy.recording import Recording
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.heads.base import Head, Target
from foveate_export.graph.heads.class_map import ClassMap
from foveate_export.graph.heads.differentiated import Differentiated
from foveate_export.graph.heads.joined import Joined
from foveate_export.graph.heads.pooled_linear import PooledLinear

Find = Callable[[Recording], Head]
"""Recognises one kind of head in a forward pass, or raises UnsupportedHeadError
and says how this head differs."""

ANALYTIC: tuple[Find, ...] = (PooledLinear.find, ClassMap.find)
"""The kinds whose gradient is known; they have a class activation map in the narrow sense."""

KINDS: tuple[Find, ...] = (*ANALYTIC, Differentiated.find)

__all__ = [
    "ANALYTIC",
    "KINDS",
    "ClassMap",
    "Differentiated",
    "Head",
    "Joined",
    "PooledLinear",
    "Target",
    "find_head",
]


def find_head(recording: Recording, layer: str | None = None) -> Head:
    """Return the head of the classifier whose forward pass is given.

    Args:
        recording: the forward pass, of two pictures or more.
        layer: the path of the layer to explain the classes by; None for the
            last one. The class activation map is that of the last layer in any
            case, where the head has one.

    Raises:
        UnknownLayerError: no layer of this name returns a map.
        UnsupportedHeadError: no kind fits; the message says why for each.
    """
    if layer is None:
        return _first_fit(recording, KINDS)
    try:
        last = _first_fit(recording, ANALYTIC)
    except UnsupportedHeadError:
        return Differentiated.at_layer(recording, layer)
    if str(last.targets["gradcam"].tap) == layer:
        return last
    return Joined(last, Differentiated.at_layer(recording, layer))


def _first_fit(recording: Recording, kinds: Sequence[Find]) -> Head:
    reasons = []
    for find in kinds:
        try:
            return find(recording)
        except UnsupportedHeadError as error:
            reasons.append(str(error))
    raise UnsupportedHeadError("this head is not supported: " + "; ".join(reasons))
