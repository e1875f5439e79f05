"""Accuracy, confusions and calibration, summed up one result at a time."""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from foveate_client._models import DEFAULT_SCORES
from foveate_client.batch.journal import Row

BINS = 15
MOST_CONFUSED = 20
WORST = 20
TOP = 5
"""Top-5 accuracy says nothing of a model with no more classes than that."""


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
    """A picture whose best class is wrong, and how sure the classifier was."""

    image: str
    target: int
    predicted: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model scores on the pictures whose right class is known.

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


class Evaluator:
    """Sums up results; its memory grows with the classes confused, not with the pictures."""

    def __init__(self, scores: str = DEFAULT_SCORES) -> None:
        self._scores = scores
        self._images = 0
        self._top1 = 0
        self._top5 = 0
        self._counts = [0] * BINS
        self._right = [0] * BINS
        self._confidence = [0.0] * BINS
        self._confused: Counter[tuple[int, int]] = Counter()
        self._of_class: Counter[int] = Counter()
        self._right_of_class: Counter[int] = Counter()
        self._mistakes: list[tuple[float, str, int, int]] = []

    def add(self, row: Row, target: int) -> None:
        """Note one result, with at least five classes where the model has as many."""
        best = row.class_ids[:TOP].tolist()
        score = float(row.scores[0])
        right = best[0] == target
        self._images += 1
        self._top1 += right
        self._of_class[target] += 1
        self._right_of_class[target] += right
        self._top5 += target in best
        if self._calibrated:
            position = bin_of(score)
            self._counts[position] += 1
            self._right[position] += right
            self._confidence[position] += score
        if not right:
            self._confused[target, best[0]] += 1
            mistake = (score, row.name, target, best[0])
            if len(self._mistakes) < WORST:
                heapq.heappush(self._mistakes, mistake)
            else:
                heapq.heappushpop(self._mistakes, mistake)

    def result(self) -> Evaluation | None:
        """Return what was found, or None where no right class is known."""
        if self._images == 0:
            return None
        bins = [self._bin(position) for position in range(BINS)] if self._calibrated else []
        return Evaluation(
            images=self._images,
            top1=self._top1 / self._images,
            top5=self._top5 / self._images,
            scores=self._scores,
            ece=_expected_calibration_error(bins) if self._calibrated else None,
            confidence=sum(self._confidence) / self._images if self._calibrated else None,
            bins=tuple(bins),
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
        )

    def _classes(self) -> Iterator[ClassAccuracy]:
        for target, images in self._of_class.items():
            yield ClassAccuracy(target=target, images=images, right=self._right_of_class[target])

    @property
    def _calibrated(self) -> bool:
        return self._scores == "softmax"

    def _bin(self, position: int) -> Bin:
        images = self._counts[position]
        return Bin(
            lower=position / BINS,
            upper=(position + 1) / BINS,
            images=images,
            confidence=self._confidence[position] / images if images else 0.0,
            accuracy=self._right[position] / images if images else 0.0,
        )


def direction(evaluation: Evaluation) -> str:
    """Say whether the scores promise too much or too little; empty where they promise nothing."""
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


def _expected_calibration_error(bins: Sequence[Bin]) -> float:
    total = sum(found.images for found in bins)
    return sum(found.images / total * abs(found.confidence - found.accuracy) for found in bins)
