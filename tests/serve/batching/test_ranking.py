"""The best classes of a batch's pictures, against a plain sort of all of them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from foveate_runtime.bundle.manifest import LOGITS_OUTPUT
from foveate_serve.batching.ranking import Ranking

SINGLE = np.dtype(np.float32)


def sorted_classes(logits: NDArray[np.float32]) -> list[int]:
    return sorted(range(len(logits)), key=lambda class_id: (-logits[class_id], class_id))


@pytest.mark.parametrize("classes", [2, 10, 64, 65, 1000])
@pytest.mark.parametrize("levels", [3, 10_000])
def test_the_best_are_those_of_a_sort_with_the_lower_class_first(classes: int, levels: int) -> None:
    numbers = np.random.default_rng(classes + levels)
    logits = numbers.integers(-levels, levels, size=(4, classes)).astype(SINGLE)
    ranking = Ranking({LOGITS_OUTPUT: logits})
    for row in range(4):
        for count in {1, 2, classes // 2, classes - 1, classes}:
            expected = sorted_classes(logits[row])[:count]
            assert ranking.best(row, count).tolist() == expected


def test_scores_are_the_softmax_of_each_picture_however_large_its_logits() -> None:
    logits = np.array([[0.0, 1.0, 2.0], [1000.0, 1001.0, 1002.0]], dtype=SINGLE)
    scores = Ranking({LOGITS_OUTPUT: logits}).scores("softmax")
    assert scores.dtype == SINGLE
    exponentials = np.exp([0.0, 1.0, 2.0])
    np.testing.assert_allclose(scores, [exponentials / exponentials.sum()] * 2, rtol=1e-6)


@pytest.mark.parametrize("classes", [10, 100])
def test_what_is_no_number_comes_last(classes: int) -> None:
    logits = np.full((1, classes), np.nan, dtype=SINGLE)
    logits[0, [7, 3]] = 1.0, 2.0
    ranking = Ranking({LOGITS_OUTPUT: logits})
    assert ranking.best(0, 4).tolist() == [3, 7, 0, 1]
