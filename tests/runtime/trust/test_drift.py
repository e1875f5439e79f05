"""Drift is seen where the answers' distribution moves, and not where it stays."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from foveate_runtime.bundle.manifest import Scores
from foveate_runtime.bundle.trust import Histogram, Policy, Trust
from foveate_runtime.trust import drift
from foveate_runtime.trust.answer import Assessor
from foveate_runtime.trust.calibration import calibrate
from foveate_runtime.trust.drift import DriftWatch, measure, stability_index

CLASSES = 10


def logits_of(count: int, spread: float = 3.0, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, spread, (count, CLASSES)).astype(np.float32)


def calibrated(scores: Scores = "softmax") -> Trust:
    logits = logits_of(4000)
    targets = np.random.default_rng(1).integers(0, CLASSES, len(logits))
    targets[::2] = logits[::2].argmax(axis=1)
    return calibrate(
        logits,
        np.eye(CLASSES, dtype=bool)[targets],
        scores=scores,
        coverages=[0.9],
        data="drawn",
        digest="sha256:" + "0" * 64,
    )


def watch(trust: Trust, logits: NDArray[np.float32], scores: Scores = "softmax") -> DriftWatch:
    watching = DriftWatch(Assessor(trust, Policy(), scores), trust.drift, scores)
    for each in logits:
        watching.observe(each[np.newaxis])
    return watching


@pytest.fixture
def _every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "SAMPLES_A_SECOND", float("inf"))


@pytest.mark.usefixtures("_every_answer")
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_answers_like_the_calibration_are_no_drift_and_surer_ones_are(scores: Scores) -> None:
    trust = calibrated(scores)
    same = watch(trust, logits_of(1000, seed=2), scores).indices()
    assert same.keys() == {"confidence", "entropy", "ood_percentile", "set_size"}
    assert max(same.values()) < 0.1
    other = watch(trust, logits_of(1000, 6.0, seed=3), scores).indices()
    assert other["entropy"] > 0.2
    assert other["ood_percentile"] > 0.2


@pytest.mark.usefixtures("_every_answer")
def test_the_last_answers_count_and_too_few_say_nothing() -> None:
    trust = calibrated()
    watching = watch(trust, logits_of(drift.LEAST - 1, 6.0))
    assert watching.indices() == {}
    watching.observe(logits_of(1, 6.0))
    assert watching.indices()["entropy"] > 0.2
    watching.observe(logits_of(drift.WINDOW, seed=4))
    assert max(watching.indices().values()) < 0.1


def test_not_every_answer_of_a_burst_is_looked_at() -> None:
    watching = watch(calibrated(), logits_of(2 * drift.LEAST))
    assert len(watching._bins) < drift.LEAST / 2


def test_of_many_answers_at_once_those_of_a_second_are_looked_at_over_all_of_them() -> None:
    # The second half is surer, so that a look at the first half alone would not show it.
    logits = np.concatenate([logits_of(500), logits_of(500, 30.0)])
    trust = calibrated()
    watching = watch(trust, logits[:0])
    watching.observe(logits)
    assert len(watching._bins) == drift.SAMPLES_A_SECOND
    sure = measure(Assessor(trust, Policy(), "softmax"), logits[-1:], "softmax")["entropy"]
    last = np.searchsorted(trust.drift["entropy"].edges, sure)[0]
    assert [bins[list(trust.drift).index("entropy")] for bins in watching._bins][-1] == last


def test_the_index_is_that_by_hand() -> None:
    reference, counts = np.array([0.5, 0.5]), np.array([900, 100])
    p, q = 500.5 / 1001, np.array([900.5, 100.5]) / 1001
    expected = ((q - p) * np.log(q / p)).sum()
    assert stability_index(reference, counts) == pytest.approx(expected, rel=1e-12)
    assert stability_index(reference, np.array([500, 500])) == 0


def test_the_entropy_is_that_of_the_confidence() -> None:
    assessor = Assessor(calibrated(), Policy(), "softmax")
    logits = np.array([[9.0] + [0.0] * 9, [0.0] * 10, [2000.0] + [0.0] * 9], np.float32)
    sure, unsure, certain = measure(assessor, logits, "softmax")["entropy"]
    assert unsure == pytest.approx(np.log(10))
    assert certain == pytest.approx(0, abs=1e-200)
    assert certain < sure < unsure


@pytest.mark.parametrize(("edges", "shares"), [((1.0,), (1.0,)), ((2.0, 1.0), (0.2, 0.3, 0.5))])
def test_a_histogram_that_is_none_is_refused(
    edges: tuple[float, ...], shares: tuple[float, ...]
) -> None:
    with pytest.raises(ValidationError):
        Histogram(edges=edges, shares=shares)


def test_a_value_that_the_reference_never_had_is_a_change() -> None:
    # Every prediction set of the calibration had one class; now some are empty, or have two.
    reference = drift.histogram(np.ones(500))
    shares = np.array(reference.shares)
    for other in (0.0, 2.0):
        now = np.searchsorted(reference.edges, np.array([1.0] * 900 + [other] * 100))
        counts = np.bincount(now, minlength=len(shares))
        assert stability_index(shares, counts) > 0.2
    same = np.bincount(np.searchsorted(reference.edges, np.ones(1000)), minlength=len(shares))
    assert stability_index(shares, same) == 0
