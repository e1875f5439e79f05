"""The pictures of a report as plain values, and the order in which they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass

from foveate_client.batch.journal import RowTrust

MOST = 50_000
"""Pictures that a page shows at most: a browser scrolls over no more rows than this."""

SCORES = 5
"""The best classes of a picture that are shown with their scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One picture of a report.

    `class_ids` and `scores` are the best classes, best first, as many as SCORES or fewer.
    `found` are the classes that the model found, and `targets` the right ones, None where
    these are unknown: one each where classes exclude each other. `surprise` orders
    mistakes: the score of the best class, or of independent labels how far the worst one
    lies on the wrong side of the threshold.
    """

    name: str
    class_ids: Sequence[int]
    scores: Sequence[float]
    found: Sequence[int]
    targets: Sequence[int] | None
    surprise: float
    trust: RowTrust | None = None

    @property
    def wrong(self) -> bool | None:
        """Whether the model is wrong about the picture; None where it is not known."""
        return None if self.targets is None else set(self.found) != set(self.targets)

    @property
    def pair(self) -> tuple[int, int] | None:
        """The right class and the one that was found, where there is one of each."""
        if self.targets is None or len(self.targets) != 1 or len(self.found) != 1:
            return None
        return self.targets[0], self.found[0]

    @property
    def rank(self) -> tuple[int, float]:
        """The sort key: the worst mistakes first, then the lowest scores."""
        if self.wrong:
            return 0, -self.surprise
        return (2 if self.wrong is None else 1), self.scores[0] if self.scores else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A picture without an answer, and why."""

    name: str
    reason: str
