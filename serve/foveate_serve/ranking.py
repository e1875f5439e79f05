"""The classes of a batch's pictures, best first."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from foveate_serve.bundle.manifest import LOGITS_OUTPUT


class Ranking:
    """The ranking of every picture of a batch, worked out for all of them when one is looked at.

    So a small picture does not pay for a dozen calls of numpy by itself.
    `outputs` are the batch's, of which the logits, float32 [n, classes], must be
    one where anything is looked at. All arrays are [n, classes], best first.
    """

    def __init__(self, outputs: Mapping[str, NDArray[np.float32]]) -> None:
        self._outputs = outputs

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """The classes, int64; of equal logits the lower class first, as in the graph."""
        return np.argsort(-self._outputs[LOGITS_OUTPUT], axis=1, kind="stable")

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """The logits, float32."""
        return np.take_along_axis(self._outputs[LOGITS_OUTPUT], self.classes, axis=1)

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """The softmax probabilities, float32."""
        exponentials = np.exp(self.logits - self.logits[:, :1])
        scores: NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
        return scores
