"""The heads whose class activation maps the graph can compute.

A head is the last part of a classifier, from the activations of one layer to
the logits. Each kind is one module with its mathematics in the docstring. Those of
`ANALYTIC` are tried first, and then any other whose gradient can be computed, by what
the forward pass does and never by the classifier's name.
"""

from collections.abc import Callable

from foveate_export.anatomy.recording import Recording
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.heads.base import Head, Target
from foveate_export.graph.heads.class_map import ClassMap
from foveate_export.graph.heads.class_token import ClassToken
from foveate_export.graph.heads.differentiated import Differentiated
from foveate_export.graph.heads.joined import Joined
from foveate_export.graph.heads.mean_of_tokens import MeanOfTokens
from foveate_export.graph.heads.pooled_linear import PooledLinear
from foveate_export.graph.heads.pooled_scaled import PooledScaled

Find = Callable[[Recording], Head]
"""Recognises one kind of head in a forward pass, or raises UnsupportedHeadError
and says how this head differs."""

ANALYTIC: tuple[Find, ...] = (PooledLinear.find, PooledScaled.find, ClassMap.find)
"""The kinds whose gradient is known; they have a class activation map in the narrow sense."""

__all__ = [
    "ANALYTIC",
    "ClassMap",
    "ClassToken",
    "Differentiated",
    "Head",
    "Joined",
    "MeanOfTokens",
    "PooledLinear",
    "PooledScaled",
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
    try:
        last = _analytic(recording)
    except UnsupportedHeadError as error:
        if layer is not None:
            return _attending(recording, Differentiated.at_layer(recording, layer))
        try:
            return _attending(recording, Differentiated.find(recording))
        except UnsupportedHeadError as other:
            raise UnsupportedHeadError(f"this head is not supported: {error}; {other}") from other
    if layer is None or str(last.targets["gradcam"].tap) == layer:
        return _with_attention(recording, last)
    return Joined(last, Differentiated.at_layer(recording, layer))


def _analytic(recording: Recording) -> Head:
    reasons = []
    for find in ANALYTIC:
        try:
            return find(recording)
        except UnsupportedHeadError as error:
            reasons.append(str(error))
    raise UnsupportedHeadError("; ".join(reasons))


def _with_attention(recording: Recording, head: Head) -> Head:
    """Add the maps of the attention of tokens whose mean is taken, or note why there are none."""
    if head.targets["gradcam"].tap.layout.kind != "tokens":
        return head
    try:
        traced = Differentiated.find(recording)
        return MeanOfTokens.find(recording, head, traced) if traced.attends else head
    except UnsupportedHeadError as error:
        head.note = f"no maps of the tokens' attention: {error}"
        return head


def _attending(recording: Recording, head: Differentiated) -> Head:
    """Add the maps of a class token's attention, or note why there are none."""
    if not head.attends:
        return head
    try:
        return ClassToken.find(recording, head)
    except UnsupportedHeadError as error:
        head.note = f"no maps of a class token's attention: {error}"
        return head
