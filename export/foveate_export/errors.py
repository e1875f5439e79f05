"""Why an export fails.

ExportError
├── UsageError            the request itself is wrong
│   └── UnknownLayerError
├── UnsupportedHeadError  no class activation map for this kind of head
│   └── UnseenAttentionError
├── ParityError           the graph's answers differ from torch's
├── AccuracyError         a variant recognises too much less than fp32
└── EngineError           TensorRT cannot build the graph

A repository that cannot take the bundle is foveate_runtime.bundle.publishing.RepositoryError.
"""

import difflib
from collections.abc import Sequence


class ExportError(Exception):
    """An export that cannot be done; the message says why."""


class UsageError(ExportError):
    """A request that names what does not exist."""


class UnknownLayerError(UsageError):
    """A layer that the classifier has not, or that gives no feature map."""

    def __init__(self, layer: str, known: Sequence[str], why: str | None = None) -> None:
        near = difflib.get_close_matches(layer, known, n=3, cutoff=0.4) or list(known[:3])
        reason = f" ({why})" if why else ""
        super().__init__(
            f"layer {layer!r} gives no feature map{reason}; near it: {', '.join(near) or 'none'} "
            f"(--list-layers shows all {len(known)})"
        )
        self.layer = layer
        self.near = tuple(near)


class UnsupportedHeadError(ExportError):
    """A head for which there is no class activation map in the graph."""


class UnseenAttentionError(UnsupportedHeadError):
    """Attention that cannot be watched while torch computes it, and so not compared."""


class ParityError(ExportError):
    """A graph that does not answer as torch does."""


class RoundingError(ParityError):
    """A graph answers otherwise where torch's own float32 is as far from float64."""


class AccuracyError(ExportError):
    """A variant whose accuracy is too far below that of fp32."""


class EngineError(ExportError):
    """A graph of which TensorRT builds no engine here."""
