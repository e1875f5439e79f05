"""What docs/trust.md promises holds in the results that it shows."""

import json
from typing import Any

import pytest
from benchmarks import trust

from foveate_runtime.trust import outliers


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(trust.RESULTS.read_text(encoding="utf-8"))
    return found


def test_the_default_is_the_best_in_the_worst_row(result: dict[str, Any]) -> None:
    assert {"mnist", "convnext_mnist", "vit_mnist", "efficientnet_lite0"} == set(result["outliers"])
    rows = [row for rows in result["outliers"].values() for row in rows.values()]
    worst = {name: min(row[name] for row in rows) for name in rows[0]}
    assert worst == result["worst"]
    assert max(worst, key=lambda name: worst[name]) == outliers.DEFAULT


def test_the_sets_cover_as_the_beta_distribution_says(result: dict[str, Any]) -> None:
    for row in result["coverage"]:
        if row["method"] == "lac":
            # 99 of 100 are expected inside; fewer than 95 happen once in 300 times.
            assert row["inside"] >= 95


def test_the_calibration_error_halves_at_least(result: dict[str, Any]) -> None:
    for each in result["calibration"].values():
        assert each["ece_after"] <= each["ece_before"] / 2
