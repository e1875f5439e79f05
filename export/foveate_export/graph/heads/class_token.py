"""Transformers that classify by a token of their own: what that token attends to."""

from collections.abc import Sequence

from foveate_export.anatomy.recording import Recording
from foveate_export.errors import UnsupportedHeadError
from foveate_export.graph.heads.attending import Attending
from foveate_export.graph.heads.differentiated import Differentiated

ORDER = ("relevance", "rollout", "legrad", "layercam", "hirescam", "gradcam")


class ClassToken(Attending):
    """The attention of a class token, and the gradients at the patch tokens."""

    description = "a class token, differentiated operator by operator"
    order = ORDER

    @classmethod
    def find(cls, recording: Recording, patches: Differentiated) -> Attending:
        """Find the blocks of a network, and the tokens before its patches that its head reads.

        Args:
            recording: the forward pass.
            patches: the maps that gradients give, of the same network.

        Raises:
            UnsupportedHeadError: it has no class token, or attends otherwise.
        """
        first = next((each for each in recording.maps if each.tap.layout.prefix), None)
        if first is None:
            raise UnsupportedHeadError(
                "no class token stands before the patches where these attend to each other"
            )
        return cls.among(recording, first, patches, patches)

    @classmethod
    def check(cls, rows: Sequence[int], patches: range) -> None:
        """Refuse heads that read patches too."""
        if not rows or rows[-1] >= patches.start:
            raise UnsupportedHeadError("the logits depend on the last block's patches as well")
