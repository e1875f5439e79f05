"""Calibrated confidence, prediction sets and outliers of logits, against values by hand."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from foveate_runtime.bundle.trust import Policy, Raps, SetThresholds, Trust
from foveate_runtime.trust import outliers, sets, shares, temperature
from foveate_runtime.trust.answer import Assessor, CoverageError, find_thresholds
from foveate_runtime.trust.calibration import calibrate, supported
from foveate_runtime.trust.reliability import expected_calibration_error, reliability
from foveate_runtime.trust.sets import TooFewError

DIGEST = "sha256:" + "0" * 64


def one_hot(targets: NDArray[np.int64], classes: int) -> NDArray[np.bool_]:
    present: NDArray[np.bool_] = np.eye(classes, dtype=bool)[targets]
    return present


def drawn(count: int, classes: int = 10, seed: int = 0) -> tuple[NDArray[np.float32], NDArray]:
    """Logits with labels that follow their softmax at twice their temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (count, classes)).astype(np.float32)
    uniform = random.random((count, 1))
    targets = (shares.softmax(logits / 2).cumsum(1) < uniform).sum(1)
    return logits, np.minimum(targets, classes - 1)


def test_what_a_probability_lacks_to_1_is_exact_where_it_rounds_to_1() -> None:
    lack = shares.softmax_lack(np.array([[50.0, 0.0, 0.0]], np.float32))
    assert lack[0, 0] == pytest.approx(2 * math.exp(-50), rel=1e-9)
    assert lack[0, 1] == 1.0


def test_the_temperature_of_two_classes_is_the_one_by_hand() -> None:
    # Three of four pictures are right, all with the logits 2 and 0: p must be 3/4, 2 / T = log 3.
    logits = np.array([[2.0, 0.0]] * 4)
    found = temperature.fit_softmax(logits, np.array([0, 0, 0, 1]))
    assert found == pytest.approx(2 / math.log(3), rel=1e-9)


def test_the_temperature_of_labels_that_were_drawn_at_it_is_found() -> None:
    logits, targets = drawn(20_000)
    assert temperature.fit_softmax(logits, targets) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("target", [0, 1])
def test_there_is_no_temperature_where_all_pictures_are_right_or_all_are_wrong(target: int) -> None:
    assert temperature.fit_softmax(np.array([[2.0, 0.0]] * 4), np.array([target] * 4)) is None


def test_each_label_of_enough_pictures_has_a_temperature_of_its_own() -> None:
    # 3 of 4 at a logit of 2, and 9 of 10 at 1; the third label has two pictures.
    first = np.tile([True, True, True, False], 50)
    second = np.tile([True] * 9 + [False], 20)
    third = np.zeros(200, bool)
    third[:2] = True
    logits = np.tile([2.0, 1.0, -3.0], (200, 1))
    found = temperature.fit_sigmoid(logits, np.stack([first, second, third], axis=1))
    assert found is not None
    assert found[0] == pytest.approx(2 / math.log(3), rel=1e-9)
    assert found[1] == pytest.approx(1 / math.log(9), rel=1e-9)
    shared = temperature._fit_labels(logits, np.stack([first, second, third], axis=1))
    assert found[2] == shared


@pytest.mark.parametrize(
    ("coverage", "images"), [(0.5, 1), (0.9, 9), (0.95, 19), (0.99, 99), (0.7, 3)]
)
def test_a_coverage_takes_as_many_labels_as_its_quantile(coverage: float, images: int) -> None:
    assert sets.needed(coverage, "sigmoid") == images
    assert sets.quantile(np.arange(images, dtype=float), coverage) == images - 1
    with pytest.raises(TooFewError, match=f"takes {images} pictures"):
        sets.quantile(np.arange(images - 1, dtype=float), coverage)


def test_the_quantile_is_the_one_of_finite_samples() -> None:
    # (9 + 1) 0.7 is 7, although 10 * 0.7 may round to more.
    assert sets.quantile(np.arange(1, 10, dtype=float), 0.7) == 7
    assert sets.quantile(np.arange(1, 10, dtype=float), 0.71) == 8


def test_the_sets_of_raps_keep_pictures_for_the_threshold() -> None:
    logits, targets = drawn(12)
    least = sets.needed(0.9, "softmax")
    assert least == 11
    sets.fit(logits[:least], one_hot(targets[:least], 10), 0.9, "softmax")
    with pytest.raises(TooFewError, match="at least 11 pictures; there are 10"):
        sets.fit(logits[:10], one_hot(targets[:10], 10), 0.9, "softmax")


def test_sets_of_lac_hold_the_classes_whose_probability_suffices() -> None:
    logits = np.log([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25]])
    thresholds = SetThresholds(coverage=0.5, lac=0.66)
    assert sets.lac_members(logits, thresholds, "softmax").tolist() == [
        [True, False, False],
        [True, True, False],
    ]


def test_sets_of_raps_add_up_what_is_likelier_and_the_penalty() -> None:
    logits = np.log([[0.1, 0.6, 0.3]])
    assert sets.raps_scores(logits, 0.2, 1)[0] == pytest.approx([0.9 + 0.4, 0.0, 0.6 + 0.2])
    raps = Raps(threshold=0.85, weight=0.2, free=1, images=9)
    assert sets.raps_members(logits, raps).tolist() == [[False, True, True]]


@pytest.mark.parametrize("method", ["lac", "raps"])
def test_the_coverage_over_many_draws_is_the_one_asked_for(method: str) -> None:
    covered = []
    for seed in range(40):
        logits, targets = drawn(1000, seed=seed)
        thresholds = sets.fit(logits[:500], one_hot(targets[:500], 10), 0.9, "softmax")
        assert thresholds.raps is not None
        members = (
            sets.lac_members(logits[500:], thresholds, "softmax")
            if method == "lac"
            else sets.raps_members(logits[500:], thresholds.raps)
        )
        covered.append(members[np.arange(500), targets[500:]].mean())
    # The standard error of the mean is about 0.003; RAPS is conservative.
    assert 0.89 < np.mean(covered) < (0.91 if method == "lac" else 1.0)


def test_the_set_of_independent_labels_holds_all_of_a_picture() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 5)).astype(np.float32)
    present = random.random((4000, 5)) < shares.sigmoid(logits)
    thresholds = sets.fit(logits[:2000], present[:2000], 0.9, "sigmoid")
    members = sets.lac_members(logits[2000:], thresholds, "sigmoid")
    covered = (members | ~present[2000:]).all(axis=1).mean()
    assert 0.88 < covered < 0.92


def test_outlier_scores_are_those_by_hand() -> None:
    logits = np.log([[0.5, 0.25, 0.25]])
    gen = 0.25**0.1 + 2 * (0.25 * 0.75) ** 0.1
    assert outliers.gen(logits, "softmax") == pytest.approx([gen])
    assert outliers.energy(logits, "softmax") == pytest.approx([0.0])
    assert outliers.max_logit(logits, "softmax") == pytest.approx([-math.log(0.5)])
    assert outliers.energy(np.zeros((1, 3)), "sigmoid") == pytest.approx([-3 * math.log(2)])
    assert outliers.gen(np.zeros((1, 3)), "sigmoid") == pytest.approx([3 * 0.25**0.1])


def test_the_generalised_entropy_counts_the_hundred_likeliest_classes() -> None:
    logits = np.zeros((1, 150))
    logits[0, :50] = 3.0
    p = shares.softmax(logits)[0]
    product = (p * (1 - p)) ** 0.1
    expected = product[:50].sum() + 50 * product[60]
    assert outliers.gen(logits, "softmax") == pytest.approx([expected])


def test_a_percentile_lies_between_those_of_the_table() -> None:
    places = np.array(outliers.table(np.arange(201.0)))
    values = np.array([-1.0, 0.0, 1.0, 100.0, 200.0, 500.0])
    assert outliers.percentile(values, places).tolist() == [0, 0, 0.5, 50, 100, 100]


def test_equal_values_of_a_table_are_the_highest_percentile() -> None:
    places = np.array(outliers.table(np.zeros(10)))
    assert outliers.percentile(np.array([-1.0, 0.0, 1.0]), places).tolist() == [0, 100, 100]


def test_the_calibration_error_is_the_one_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([True, False, True, True])
    bins = reliability(confidence, right, bins=10)
    assert [each.images for each in bins] == [2, 2]
    assert expected_calibration_error(bins) == pytest.approx((0.45 + 0.45) / 2)


def test_coverages_that_pictures_do_not_suffice_for_are_left_out() -> None:
    assert supported((0.9, 0.95, 0.99), 100, "softmax") == [0.9, 0.95]
    assert supported((0.9, 0.95, 0.99), 124, "softmax") == [0.9, 0.95, 0.99]


def test_what_a_network_is_surer_of_than_of_its_pictures_is_unusual_too() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 1, (500, 10))
    logits[np.arange(500), random.integers(0, 10, 500)] += random.uniform(3, 8, 500)
    tables = outliers.tables(logits, "softmax")
    sure, flat = np.eye(10)[:1] * 40, np.zeros((1, 10))
    assert outliers.unusual(sure, "softmax", "gen", tables)[0] == 0
    for strange in (sure, flat):
        assert outliers.unusual(strange, "softmax", "combined", tables)[0] == 100
    own = outliers.unusual(logits, "softmax", "combined", tables)
    assert own.mean() == pytest.approx(50, abs=1)
    gen = outliers.unusual(logits[:1], "softmax", "gen", tables)[0]
    energy = outliers.unusual(logits[:1], "softmax", "energy", tables)[0]
    larger = np.array([max(gen, 2 * abs(energy - 50))])
    assert own[0] == outliers.percentile(larger, np.array(tables["combined"]))[0]


@pytest.fixture(scope="module")
def trust() -> Trust:
    logits, targets = drawn(2000)
    return calibrate(
        logits,
        one_hot(targets, 10),
        scores="softmax",
        coverages=(0.95, 0.9),
        data="drawn",
        digest=DIGEST,
    )


def test_an_answer_is_assessed_by_what_the_calibration_found(trust: Trust) -> None:
    logits, targets = drawn(2000, seed=1)
    found = Assessor(trust, Policy(), "softmax").assess(logits)
    confidence = np.stack([each.confidence for each in found if each.confidence is not None])
    right = confidence.argmax(1) == targets
    after = expected_calibration_error(reliability(confidence.max(1), right))
    before = expected_calibration_error(reliability(shares.softmax(logits).max(1), right))
    assert after < before / 4
    assert {each.coverage for each in found} == {0.9}
    covered = np.mean(
        [target in each.prediction_set for each, target in zip(found, targets, strict=True)]
    )
    assert 0.87 < covered < 0.93
    assert np.mean([each.ood_percentile for each in found]) == pytest.approx(50, abs=3)
    assert not any(each.abstained for each in found)
    best = [each.prediction_set[0] for each in found if each.prediction_set]
    assert best == [
        row.argmax() for row, each in zip(logits, found, strict=True) if each.prediction_set
    ]


def test_a_model_abstains_by_its_policy(trust: Trust) -> None:
    flat, sure = np.zeros((1, 10), np.float32), np.eye(10, dtype=np.float32)[:1] * 7
    for policy in (Policy(abstain_above=99), Policy(abstain_set_larger_than=3)):
        found = Assessor(trust, policy, "softmax").assess(np.concatenate([flat, sure]), 0.95)
        assert [each.abstained for each in found] == [True, False]


def test_a_coverage_that_was_not_calibrated_is_refused(trust: Trust) -> None:
    with pytest.raises(CoverageError, match=r"0\.99 was not calibrated; there are 0\.9, 0\.95"):
        find_thresholds(trust, 0.99, "lac")


def test_a_manifest_without_the_table_that_it_uses_is_refused(trust: Trust) -> None:
    document = trust.model_dump()
    del document["outliers"]["energy"]
    with pytest.raises(ValidationError, match="'energy' is used and has no table"):
        Trust.model_validate(document)
    document["outlier"] = "gen"
    Trust.model_validate(document)


def test_there_is_no_confidence_without_a_temperature() -> None:
    logits = (np.eye(10) * 8)[np.arange(100) % 10].astype(np.float32)
    logits += np.random.default_rng(0).normal(0, 1, logits.shape).astype(np.float32)
    trust = calibrate(
        logits,
        one_hot(np.arange(100) % 10, 10),
        scores="softmax",
        coverages=(0.9,),
        data="easy",
        digest=DIGEST,
    )
    assert trust.temperatures == ()
    assert Assessor(trust, Policy(), "softmax").assess(logits[:1])[0].confidence is None
