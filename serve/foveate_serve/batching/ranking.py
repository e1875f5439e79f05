"""The best classes of a batch's pictures, and their scores."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import LOGITS_OUTPUT, Scores
from foveate_runtime.bundle.scores import score

_FEW = 64
"""To sort so many classes of a whole batch takes no longer than to look for the best of one row."""


class Ranking:
    """The ranking of the pictures of a batch.

    What can be is worked out for all of them when one is looked at, so that a
    small picture does not pay for a dozen calls of numpy by itself. `outputs`
    are the batch's, of which the logits, float32 [n, classes], must be one where
    anything is looked at.
    """

    def __init__(self, outputs: Mapping[str, NDArray[np.float32]]) -> None:
        self._outputs = outputs
        self._scores: NDArray[np.float32] | None = None

    def best(self, row: int, count: int) -> NDArray[np.int64]:
        """Return the best classes of a picture, int64 [count], the best first.

        Of equal logits the lower class comes first, as in the graph.
        """
        if self.logits.shape[1] <= _FEW:
            return self._order[row, :count]
        negated = -self.logits[row]
        last = np.partition(negated, count - 1)[count - 1]
        # Those equal to the last as well, in the order of the classes; and what is no number.
        candidates = np.flatnonzero(~(negated > last))
        best: NDArray[np.int64] = candidates[np.argsort(negated[candidates], kind="stable")]
        return best[:count]

    @property
    def logits(self) -> NDArray[np.float32]:
        """The logits, float32 [n, classes]."""
        return self._outputs[LOGITS_OUTPUT]

    def scores(self, kind: Scores) -> NDArray[np.float32]:
        """Return the scores, float32 [n, classes], of the `kind` that the batch's model has."""
        if self._scores is None:
            self._scores = score(self.logits, kind)
        return self._scores

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(-self.logits, axis=1, kind="stable")
