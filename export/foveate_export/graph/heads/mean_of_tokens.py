"""Transformers that classify by the mean of their patches: what these attend to."""

from collections.abc import Sequence

from foveate_export.anatomy.recording import Recording
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.heads.attending import Attending
from foveate_export.graph.heads.base import Head
from foveate_export.graph.heads.differentiated import Differentiated

ORDER = ("relevance", "rollout", "legrad", "cam", "gradcam", "hirescam", "layercam")


class MeanOfTokens(Attending):
    """The attention of the patches whose mean the head takes, and the maps of that mean."""

    order = ORDER

    @classmethod
    def find(cls, recording: Recording, pooled: Head, traced: Differentiated) -> Attending:
        """Find the blocks before a mean of tokens.

        Args:
            recording: the forward pass.
            pooled: the maps of the mean, one of patches as tokens, of the same network.
            traced: the same network, traced.

        Raises:
            UnsupportedHeadError: it attends otherwise.
        """
        layout = pooled.targets["cam"].tap.layout
        first = next(each for each in recording.maps if each.tap.layout == layout)
        head = cls.among(recording, first, pooled, traced)
        head.description = f"attention among tokens, {pooled.description}"
        return head

    @classmethod
    def check(cls, rows: Sequence[int], patches: range) -> None:
        """Refuse heads that read other tokens than the patches."""
        if list(rows) != list(patches):
            raise UnsupportedHeadError("the logits depend on other tokens than the patches")
