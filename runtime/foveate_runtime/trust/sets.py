"""Prediction sets of a coverage: split conformal prediction.

With a score s(x, y) that is larger the worse class y fits picture x, the k-th smallest
score of n labelled pictures, k = ceil((n + 1) c), is a threshold t with

    P(y in {class : s(x, class) <= t}) >= c

over pictures and threshold together, for a picture that is exchangeable with the n. The
share of covered pictures given the threshold then has the distribution Beta(k, n + 1 - k)
where no two scores are equal (Vovk, "Conditional validity of inductive conformal
predictors", 2012).

- LAC (Sadinle, Lei and Wasserman, JASA 2019): s = 1 - p[y]. The sets are the smallest on
  average, and may be empty. For independent labels s is the largest of the labels that
  the picture has, so that the set holds all of them.
- RAPS (Angelopoulos et al., ICLR 2021): s is the probability of all classes that are
  likelier than y, plus `weight` for every rank of y past `free`. This is the paper's score
  with u = 1, the conservative choice, which needs no random number: the best class
  belongs to every set.
"""

from math import ceil

import numpy as np
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import Scores
from foveate_runtime.bundle.trust import Raps, SetThresholds
from foveate_runtime.trust import shares
from foveate_runtime.trust.shares import Doubles, Logits

WEIGHTS = (0.001, 0.01, 0.1, 0.2, 0.5)
"""Those that the paper chooses from."""
_TUNED = 5
"""One picture in so many chooses the regularisation."""


class TooFewError(Exception):
    """Fewer pictures than a coverage takes; the message gives the number needed."""


def rank(images: int, coverage: float) -> int:
    """Return k: the place of the threshold among the scores of `images`, from 1."""
    # Rounded, because (n + 1) c may lie above a whole number by the last bit.
    return ceil(round((images + 1) * coverage, 9))


def needed(coverage: float, scores: Scores) -> int:
    """Return how many pictures a coverage takes at least."""
    # The k-th of n exists from n = c / (1 - c) on.
    images = ceil(round(coverage / (1 - coverage), 9))
    while scores == "softmax" and rank(images - images // _TUNED, coverage) > (
        images - images // _TUNED
    ):
        images += 1
    return images


def quantile(scores: Doubles, coverage: float) -> float:
    """Return the threshold of `scores` [n]; raises TooFewError where n is too small."""
    place = rank(len(scores), coverage)
    if place > len(scores):
        least = ceil(round(coverage / (1 - coverage), 9))
        raise TooFewError(f"a coverage of {coverage:g} takes {least} pictures, not {len(scores)}")
    return float(np.partition(scores, place - 1)[place - 1])


def fit(
    logits: Logits,
    present: NDArray[np.bool_],
    coverage: float,
    scores: Scores,
) -> SetThresholds:
    """Return the thresholds of a coverage.

    Args:
        logits: float [N, classes]. The pictures must be in random order.
        present: which labels each picture has, of the same shape; one of each row
            where classes exclude each other.
        coverage: above 0 and below 1.
        scores: the function from logits to probabilities.

    Raises:
        TooFewError: fewer pictures than `needed`.
    """
    least = needed(coverage, scores)
    if len(logits) < least:
        raise TooFewError(
            f"a coverage of {coverage:g} takes at least {least} pictures; there are {len(logits)}"
        )
    lacking = np.where(present, shares.lack(logits, scores), 0.0).max(axis=1)
    raps = None if scores == "sigmoid" else _fit_raps(logits, present, coverage)
    return SetThresholds(coverage=coverage, lac=quantile(lacking, coverage), raps=raps)


def lac_members(logits: Logits, thresholds: SetThresholds, scores: Scores) -> NDArray[np.bool_]:
    """Return the sets of LAC, bool [N, classes]."""
    members: NDArray[np.bool_] = shares.lack(logits, scores) <= thresholds.lac
    return members


def raps_members(logits: Logits, raps: Raps) -> NDArray[np.bool_]:
    """Return the sets of RAPS, bool [N, classes]."""
    order, scores = _ordered_scores(logits, raps.weight, raps.free)
    members = np.zeros(logits.shape, np.bool_)
    members[np.arange(len(logits))[:, None], order] = scores <= raps.threshold
    return members


def raps_scores(logits: Logits, weight: float, free: int) -> Doubles:
    """Return the score of every class, float64 [N, classes]."""
    order, ordered = _ordered_scores(logits, weight, free)
    scores = np.empty_like(ordered)
    np.put_along_axis(scores, order, ordered, axis=1)
    return scores


def _ordered_scores(logits: Logits, weight: float, free: int) -> tuple[NDArray[np.intp], Doubles]:
    """Return the classes in their order, the likeliest first, and the scores in that order.

    Of equal logits the lower class comes first.
    """
    order = np.argsort(-logits, axis=1, kind="stable")
    probabilities = np.take_along_axis(shares.softmax(logits), order, axis=1)
    scores: Doubles = probabilities.cumsum(axis=1) - probabilities
    return order, scores + weight * np.maximum(0, np.arange(1, order.shape[1] + 1) - free)


def _ranks(logits: Logits) -> NDArray[np.int64]:
    """Return each class's rank, from 0; of equal logits the lower class comes first."""
    order = np.argsort(-logits, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(order.shape[1])[None], axis=1)
    return ranks


def _fit_raps(logits: Logits, present: NDArray[np.bool_], coverage: float) -> Raps:
    """Choose the regularisation on some pictures, and the threshold on the others.

    As in the paper, `free` is the rank that holds the class of a share `coverage` of the
    pictures, and `weight` is the one of the smallest sets on average.
    """
    tuned = len(logits) // _TUNED
    chosen = logits[:tuned] if tuned else logits[:0]
    rest, targets = logits[tuned:], present[tuned:].argmax(axis=1)
    weight, free = WEIGHTS[0], 1
    if tuned:
        right = present[:tuned].argmax(axis=1)
        ranks = _ranks(chosen)[np.arange(tuned), right] + 1
        free = int(np.sort(ranks)[min(rank(tuned, coverage), tuned) - 1])
        weight = min(WEIGHTS, key=lambda each: _mean_size(chosen, right, coverage, each, free))
    scores = raps_scores(rest, weight, free)[np.arange(len(rest)), targets]
    return Raps(
        threshold=max(0.0, quantile(scores, coverage)), weight=weight, free=free, images=len(rest)
    )


def _mean_size(
    logits: Logits, targets: NDArray[np.int64], coverage: float, weight: float, free: int
) -> float:
    scores = raps_scores(logits, weight, free)
    right = np.sort(scores[np.arange(len(logits)), targets])
    threshold = right[min(rank(len(right), coverage), len(right)) - 1]
    return float((scores <= threshold).sum(axis=1).mean())
