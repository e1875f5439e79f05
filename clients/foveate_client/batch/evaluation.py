"""Accuracy, confusions and calibration, from one result at a time."""

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from foveate_client._models import DEFAULT_SCORES
from foveate_client.batch.journal import Row, RowTrust

BINS = 15
MOST_CONFUSED = 20
WORST = 20
TOP = 5
"""The classes of top-5 accuracy, which has no meaning for a model with no more of them."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The pictures whose best score lies above `lower` and up to `upper`.

    `confidence` is their mean best score and `accuracy` the share whose best
    class is right; both are 0 where there are no pictures.
    """

    lower: float
    upper: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """How many pictures a class has, and how many of them were taken for it."""

    target: int
    images: int
    right: int

    @property
    def accuracy(self) -> float:
        """The share from 0 to 1."""
        return self.right / self.images


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A class that was taken for another one, and how often."""

    target: int
    predicted: int
    images: int


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A picture whose best class is wrong, and the score of that class."""

    image: str
    target: int
    predicted: int
    score: float


@dataclass(frozen=True, kw_only=True)
class SetSummary:
    """Figures of the prediction sets of one coverage.

    `covered`, `empty` and `abstained` are the shares of the pictures whose right class is in
    the set, whose set is empty, and from which the model abstained; `mean_size` is the
    classes of a set on average.
    """

    coverage: float
    covered: float
    mean_size: float
    empty: float
    abstained: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation of a model on the pictures whose right class is known.

    `top1` and `top5` are shares from 0 to 1. `ece` is the expected calibration
    error, the mean over the pictures of their bin's difference between
    confidence and accuracy (C. Guo et al., On Calibration of Modern Neural
    Networks, 2017, with bins of equal width). `confusions` are the most
    frequent ones, `mistakes` those with the highest scores. `ece` and `confidence`,
    the mean best score, are None, and `bins` are empty, where the model's `scores` are
    no probabilities of classes that exclude each other. `classes` are those of the
    pictures, the least accurate first.
    """

    images: int
    top1: float
    top5: float
    scores: str
    ece: float | None
    confidence: float | None
    bins: tuple[Bin, ...]
    classes: tuple[ClassAccuracy, ...]
    confusions: tuple[Confusion, ...]
    mistakes: tuple[Mistake, ...]
    ece_calibrated: float | None = None
    calibrated_bins: tuple[Bin, ...] = ()
    sets: SetSummary | None = None


class Evaluator:
    """Adds up results. Its memory grows with the confused classes, not with the pictures."""

    def __init__(self, scores: str = DEFAULT_SCORES) -> None:
        self._scores = scores
        self._images = 0
        self._top1 = 0
        self._top5 = 0
        self._plain = _Reliability()
        self._calibrated = _Reliability()
        self._sets = _SetTally()
        self._confused: Counter[tuple[int, int]] = Counter()
        self._of_class: Counter[int] = Counter()
        self._right_of_class: Counter[int] = Counter()
        self._mistakes: list[tuple[float, str, int, int]] = []

    def add(self, row: Row, target: int) -> None:
        """Add one result, of at least five classes where the model has as many."""
        best = row.class_ids[:TOP].tolist()
        score = float(row.scores[0])
        right = best[0] == target
        self._images += 1
        self._top1 += right
        self._of_class[target] += 1
        self._right_of_class[target] += right
        self._top5 += target in best
        if self._exclusive:
            self._plain.add(score, right=right)
        if row.trust is not None:
            self._sets.add(row.trust, target)
            if self._exclusive and row.trust.confidence is not None:
                self._calibrated.add(row.trust.confidence, right=right)
        if not right:
            self._confused[target, best[0]] += 1
            mistake = (score, row.name, target, best[0])
            if len(self._mistakes) < WORST:
                heapq.heappush(self._mistakes, mistake)
            else:
                heapq.heappushpop(self._mistakes, mistake)

    def result(self) -> Evaluation | None:
        """Return the evaluation, or None where no right class is known."""
        if self._images == 0:
            return None
        return Evaluation(
            images=self._images,
            top1=self._top1 / self._images,
            top5=self._top5 / self._images,
            scores=self._scores,
            ece=self._plain.error,
            confidence=self._plain.mean,
            bins=self._plain.bins,
            classes=tuple(sorted(self._classes(), key=lambda x: (x.accuracy, -x.images, x.target))),
            confusions=tuple(
                Confusion(target=target, predicted=predicted, images=images)
                for (target, predicted), images in sorted(
                    self._confused.items(), key=lambda found: (-found[1], found[0])
                )[:MOST_CONFUSED]
            ),
            mistakes=tuple(
                Mistake(image=name, target=target, predicted=predicted, score=score)
                for score, name, target, predicted in sorted(self._mistakes, reverse=True)
            ),
            ece_calibrated=self._calibrated.error,
            calibrated_bins=self._calibrated.bins,
            sets=self._sets.summary,
        )

    def _classes(self) -> Iterator[ClassAccuracy]:
        for target, images in self._of_class.items():
            yield ClassAccuracy(target=target, images=images, right=self._right_of_class[target])

    @property
    def _exclusive(self) -> bool:
        return self._scores == "softmax"


class _Reliability:
    """Counts, by confidence, how often the best class is right."""

    def __init__(self) -> None:
        self._counts = [0] * BINS
        self._right = [0] * BINS
        self._confidence = [0.0] * BINS

    def add(self, confidence: float, *, right: bool) -> None:
        position = bin_of(confidence)
        self._counts[position] += 1
        self._right[position] += right
        self._confidence[position] += confidence

    @property
    def bins(self) -> tuple[Bin, ...]:
        """All bins; none where nothing was counted."""
        return tuple(map(self._bin, range(BINS))) if sum(self._counts) else ()

    @property
    def mean(self) -> float | None:
        """The mean confidence; None where nothing was counted."""
        total = sum(self._counts)
        return sum(self._confidence) / total if total else None

    @property
    def error(self) -> float | None:
        """The expected calibration error; None where nothing was counted."""
        total = sum(self._counts)
        if not total:
            return None
        gaps = (found.images * abs(found.confidence - found.accuracy) for found in self.bins)
        return sum(gaps) / total

    def _bin(self, position: int) -> Bin:
        images = self._counts[position]
        return Bin(
            lower=position / BINS,
            upper=(position + 1) / BINS,
            images=images,
            confidence=self._confidence[position] / images if images else 0.0,
            accuracy=self._right[position] / images if images else 0.0,
        )


class _SetTally:
    """Adds up prediction sets."""

    def __init__(self) -> None:
        self._images = self._covered = self._classes = self._empty = self._abstained = 0
        self._coverage = 0.0

    def add(self, trust: RowTrust, target: int) -> None:
        self._images += 1
        self._coverage = trust.coverage
        self._covered += target in trust.prediction_set
        self._classes += len(trust.prediction_set)
        self._empty += not trust.prediction_set
        self._abstained += trust.abstained

    @property
    def summary(self) -> SetSummary | None:
        """The figures; None where nothing was counted."""
        if not self._images:
            return None
        return SetSummary(
            coverage=self._coverage,
            covered=self._covered / self._images,
            mean_size=self._classes / self._images,
            empty=self._empty / self._images,
            abstained=self._abstained / self._images,
        )


def direction(evaluation: Evaluation) -> str:
    """Return a sentence on the bias of the scores, empty where they are no probabilities."""
    if evaluation.confidence is None:
        return ""
    difference = evaluation.confidence - evaluation.top1
    side = "too high" if difference > 0 else "too low"
    return (
        f"scores are {side} by {abs(difference):.1%} in the mean "
        f"({evaluation.confidence:.1%} for an accuracy of {evaluation.top1:.1%})"
    )


def bin_of(score: float) -> int:
    """Return the bin of a score from 0 to 1; its upper edge belongs to it."""
    position = int(score * BINS)
    return position - 1 if position and position == score * BINS else position
