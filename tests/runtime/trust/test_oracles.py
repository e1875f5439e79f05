"""The figures are those of MAPIE, netcal, pytorch-ood and Quantus on the same arrays."""

import json
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from foveate_runtime.bundle.trust import SetThresholds
from foveate_runtime.evaluation.faithfulness import auc, focus
from foveate_runtime.evaluation.randomisation import rank_correlation
from foveate_runtime.trust import outliers, sets, shares, temperature
from foveate_runtime.trust.reliability import expected_calibration_error, reliability

from ...environment import make_environment

pytestmark = pytest.mark.network

ROOT = Path(__file__).parents[3]
COVERAGE, WEIGHT, FREE = 0.9, 0.1, 2
CLOSE = 1e-6


def arrays() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    random = np.random.default_rng(3)
    targets = random.integers(0, 10, 400)
    logits = random.normal(0, 2, (400, 10))
    logits[np.arange(400), targets] += 3
    return logits, targets


def maps() -> NDArray[np.float32]:
    """Return maps [N, h, w], of which some cells are equal."""
    drawn = np.random.default_rng(4).normal(0, 1, (12, 6, 6))
    return np.maximum(drawn, -0.5).astype(np.float32)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("oracle")
    constrained = ("--constraint", ROOT / "constraints.txt")
    packages = ("mapie", "netcal", "pytorch-ood", "quantus")
    python = make_environment(folder / "venv", *constrained, *packages)
    logits, targets = arrays()
    np.savez(
        folder / "arrays.npz",
        logits=logits,
        targets=targets,
        probabilities=shares.softmax(logits),
        maps=maps(),
        coverage=COVERAGE,
        weight=WEIGHT,
        free=FREE,
    )
    script = Path(__file__).with_name("oracles.py")
    printed = subprocess.run(
        [python, script, folder / "arrays.npz"], check=True, text=True, stdout=subprocess.PIPE
    ).stdout
    answers: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return answers


def test_the_sets_of_lac_are_mapies(oracle: dict[str, Any]) -> None:
    logits, targets = arrays()
    lack = shares.lack(logits, "softmax")[np.arange(400), targets]
    threshold = sets.quantile(lack, COVERAGE)
    assert threshold == pytest.approx(oracle["lac"], abs=CLOSE)
    thresholds = SetThresholds(coverage=COVERAGE, lac=threshold)
    assert (sets.lac_members(logits, thresholds, "softmax") == np.array(oracle["members"])).all()


def test_the_scores_of_raps_are_mapies(oracle: dict[str, Any]) -> None:
    logits, _ = arrays()
    assert sets.raps_scores(logits, WEIGHT, FREE) == pytest.approx(
        np.array(oracle["raps"]), abs=CLOSE
    )


def test_the_temperature_and_the_calibration_error_are_netcals(oracle: dict[str, Any]) -> None:
    logits, targets = arrays()
    found = temperature.fit_softmax(logits, targets)
    assert found is not None
    assert shares.softmax(logits / found) == pytest.approx(np.array(oracle["scaled"]), abs=CLOSE)
    plain = shares.softmax(logits)
    bins = reliability(plain.max(1), plain.argmax(1) == targets)
    assert expected_calibration_error(bins) == pytest.approx(oracle["ece"], abs=CLOSE)


def test_the_outlier_scores_are_those_of_pytorch_ood(oracle: dict[str, Any]) -> None:
    logits, _ = arrays()
    # pytorch-ood takes the mean over the classes, which ranks pictures alike.
    assert outliers.gen(logits, "softmax") / 10 == pytest.approx(np.array(oracle["gen"]), abs=CLOSE)
    for name in ("energy", "max_logit"):
        score = outliers.OUTLIERS[name](logits, "softmax")
        assert score == pytest.approx(np.array(oracle[name]), abs=CLOSE)


def test_what_maps_are_worth_is_as_quantus_finds_it(oracle: dict[str, Any]) -> None:
    drawn = maps()
    found = [focus(each, number % 4) for number, each in enumerate(drawn)]
    assert found == pytest.approx(oracle["focus"], abs=CLOSE)
    alike = [rank_correlation(*pair) for pair in pairwise(drawn)]
    assert alike == pytest.approx(oracle["spearman"], abs=CLOSE)
    logits, _ = arrays()
    curves = shares.softmax(logits).astype(np.float32)
    assert [auc(curve) for curve in curves] == pytest.approx(oracle["auc"], abs=CLOSE)
