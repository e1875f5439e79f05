"""The best classes of a batch's pictures, and their scores."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import LOGITS_OUTPUT, Scores
from foveate_runtime.bundle.scores import score

_FEW = 64
"""Up to so many classes, sorting the whole batch takes no longer than searching one row."""


_NO_LOGITS = np.empty((0, 0), dtype=np.float32)


class Ranking:
    """The ranking of the pictures of a batch.

    The first use computes the result for the whole batch where it can: the pictures of
    a batch share a dozen calls of numpy. `outputs` are
    the batch's; `logits` are those among them, float32 [n, classes], which every
    method needs.
    """

    def __init__(self, outputs: Mapping[str, NDArray[np.float32]]) -> None:
        self.logits = outputs.get(LOGITS_OUTPUT, _NO_LOGITS)
        self._scores: NDArray[np.float32] | None = None

    def best(self, row: int, count: int) -> NDArray[np.int64]:
        """Return the best classes of a picture, int64 [count], the best first.

        Of equal logits the lower class comes first, as in the graph.
        """
        if self.logits.shape[1] <= _FEW:
            return self._order[row, :count]
        negated = -self.logits[row]
        last = np.partition(negated, count - 1)[count - 1]
        # Includes those equal to the last, in the order of the classes, and NaN.
        candidates = np.flatnonzero(~(negated > last))
        best: NDArray[np.int64] = candidates[np.argsort(negated[candidates], kind="stable")]
        return best[:count]

    def scores(self, kind: Scores) -> NDArray[np.float32]:
        """Return the scores, float32 [n, classes], of the `kind` that the batch's model has."""
        if self._scores is None:
            self._scores = score(self.logits, kind)
        return self._scores

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(-self.logits, axis=1, kind="stable")
