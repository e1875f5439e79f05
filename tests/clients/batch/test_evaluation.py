import re

import numpy as np
import pytest

from foveate_client.batch.evaluation import BINS, WORST, Confusion, Evaluator, bin_of, direction
from foveate_client.batch.journal import Row
from foveate_client.report.page import Heading, render


def row(number, class_ids, scores):
    return Row(
        name=f"{number}.jpg",
        position=number,
        label=None,
        class_ids=np.array(class_ids, dtype=np.int32),
        scores=np.array(scores, dtype=np.float32),
        vectors=np.empty(0, dtype=np.float32),
        cam=None,
    )


@pytest.fixture
def sample():
    """The softmax of 400 seeded logits of ten classes, and targets that often are the best."""
    chance = np.random.default_rng(3)
    logits = chance.normal(size=(400, 10)) * 2
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = np.where(chance.random(400) < 0.6, scores.argmax(axis=1), chance.integers(0, 10, 400))
    return scores.astype(np.float32), targets


def evaluate(scores, targets):
    evaluator = Evaluator()
    for number, (line, target) in enumerate(zip(scores, targets, strict=True)):
        ranking = np.argsort(-line)[:5]
        evaluator.add(row(number, ranking, line[ranking]), int(target))
    return evaluator.result()


def test_accuracy_and_calibration_are_those_of_their_definitions(sample):
    scores, targets = sample
    found = evaluate(scores, targets)
    best, confidence = scores.argmax(axis=1), scores.max(axis=1)
    right = best == targets
    assert found.images == 400
    assert found.top1 == pytest.approx(right.mean())
    top5 = np.argsort(-scores, axis=1)[:, :5]
    assert found.top5 == pytest.approx((top5 == targets[:, None]).any(axis=1).mean())
    bins = np.ceil(confidence * BINS).astype(int) - 1
    expected = sum(
        (bins == x).mean() * abs(confidence[bins == x].mean() - right[bins == x].mean())
        for x in np.unique(bins)
    )
    assert found.ece == pytest.approx(expected, rel=1e-5)
    assert found.confidence == pytest.approx(confidence.mean(), rel=1e-5)
    side = "too high" if confidence.mean() > right.mean() else "too low"
    assert direction(found).startswith(f"scores are {side} by ")
    assert sum(x.images for x in found.classes) == 400
    for each in found.classes:
        assert each.accuracy == pytest.approx(right[targets == each.target].mean())
    assert [x.accuracy for x in found.classes] == sorted(x.accuracy for x in found.classes)
    assert [x.images for x in found.bins] == np.bincount(bins, minlength=BINS).tolist()


def test_confusions_and_mistakes_are_the_largest_ones(sample):
    scores, targets = sample
    found = evaluate(scores, targets)
    best = scores.argmax(axis=1)
    wrong = best != targets
    pairs, counts = np.unique(np.stack([targets, best])[:, wrong], axis=1, return_counts=True)
    assert found.confusions[0].images == counts.max()
    first = found.confusions[0]
    index = np.flatnonzero(np.equal(pairs.T, [first.target, first.predicted]).all(axis=1))
    assert counts[index].tolist() == [first.images]
    highest = np.sort(scores.max(axis=1)[wrong])[::-1][:WORST]
    assert [x.score for x in found.mistakes] == pytest.approx(highest.tolist())


@pytest.mark.parametrize(
    ("score", "position"),
    [(0.0, 0), (1e-6, 0), (1 / 15, 0), (0.07, 1), (0.2, 2), (0.99, 14), (1.0, 14)],
)
def test_a_bin_holds_its_upper_edge(score, position):
    assert bin_of(score) == position


def test_nothing_known_is_no_evaluation():
    assert Evaluator().result() is None


def test_the_report_tells_all_and_needs_nothing_else():
    evaluator = Evaluator()
    evaluator.add(row(0, [0, 1], [0.9, 0.1]), 0)
    evaluator.add(row(1, [1, 0], [0.8, 0.2]), 0)
    evaluation = evaluator.result()
    assert evaluation.confusions == (Confusion(target=0, predicted=1, images=1),)
    labels = ["<cat>", "dog & co"]
    heading = Heading(model="pets", version="3", labels=labels, scores="softmax")
    page = render(heading, evaluation)
    assert "&lt;cat&gt;" in page
    assert "dog &amp; co" in page
    assert "<cat>" not in page
    assert "1.jpg" in page
    assert "50.00%" in page
    assert page.count("<circle") == 2
    assert not re.search(r"(src|href)=", page)
    assert "<script" not in page
