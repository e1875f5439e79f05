"""What `foveate evaluate --explanations` measures of maps, and where it goes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands import evaluate
from foveate_runtime.evaluation.faithfulness import (
    auc,
    blurred,
    controls,
    focus,
    mosaic,
    ranking,
    replaced,
)

from ..colours import LABELS, SIZE


def write_halves(root: Path) -> Path:
    """Write pictures of which one part has the class's colour, and the rest is dark."""
    random = np.random.default_rng(0)
    for number in range(12):
        target = number % 3
        pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
        row, column = random.integers(0, SIZE // 2, 2)
        pixels[row : row + 4, column : column + 4, target] = 255
        (root / LABELS[target]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / LABELS[target] / f"{number}.png")
    return root


def test_an_exact_map_beats_what_knows_nothing_and_is_written_into_a_new_version(
    write_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle()
    data = write_halves(tmp_path / "data")
    arguments = ["--repository", str(bundle.parents[1]), "--model", "colours", "--data", str(data)]
    assert evaluate.main([*arguments, "--explanations", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(bundle.parent / "2")
    maps = found["explanations"]["maps"]
    assert maps.keys() == {"cam", "random", "centre Gaussian"}
    for control in ("random", "centre Gaussian"):
        assert maps["cam"]["deletion"]["mean"] < maps[control]["deletion"]["mean"]
        assert maps["cam"]["average_drop"]["mean"] < maps[control]["average_drop"]["mean"]
    # The map of a colour is the colour itself, and no other quarter has it.
    assert maps["cam"]["focus"]["mean"] == pytest.approx(1.0)
    assert maps["random"]["focus"]["mean"] == pytest.approx(0.25, abs=0.1)
    kept = Bundle.open(bundle.parent / "2").manifest.faithfulness
    assert kept is not None
    assert kept.model_dump() == found["explanations"]
    assert Bundle.open(bundle).manifest.faithfulness is None

    assert evaluate.main([*arguments, "--version", "1", "--explanations"]) == 0
    said = capsys.readouterr().out
    assert "centre Gaussian" in said
    assert f"written into {bundle.parent / '3'}" in said


def test_what_cannot_be_measured_is_refused(
    write_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(scores="none")
    data = write_halves(tmp_path / "data")
    arguments = ["--repository", str(bundle.parents[1]), "--model", "colours", "--explanations"]
    assert evaluate.main([*arguments, "--data", str(data)]) == 1
    assert "no map can be judged by them" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--data", str(tmp_path / "table.csv")]) == 2
    assert "--explanations takes pictures in one folder a class" in capsys.readouterr().err
    assert [path.name for path in bundle.parent.iterdir()] == ["1"]


def test_the_area_is_that_of_trapezoids() -> None:
    assert auc(np.array([0, 0.25, 1], dtype=np.float32)) == pytest.approx(0.375)
    assert auc(np.full(5, 0.5, dtype=np.float32)) == pytest.approx(0.5)


def test_the_highest_pixels_are_replaced_first() -> None:
    values = np.array([[0, 1], [3, 2]], dtype=np.float32)
    order = ranking(values, 2, 2)
    assert order.tolist() == [2, 3, 1, 0]
    start, end = np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 9, np.uint8)
    stages = replaced(start, end, order, 4)
    assert stages[:, :, :, 0].tolist() == [[[0, 0], [9, 0]], [[0, 0], [9, 9]], [[0, 9], [9, 9]]]
    assert not start.any()


def test_a_blur_keeps_the_mean_and_spreads_a_point() -> None:
    assert (blurred(np.full((20, 20, 3), 77, np.uint8)) == 77).all()
    point = np.zeros((31, 31, 1), np.uint8)
    point[15, 15] = 255
    spread = blurred(point)[:, :, 0]
    assert spread[15, 15] == spread.max() > spread[15, 19] > spread[15, 21] == 0


def test_the_controls_know_no_picture() -> None:
    first, second = controls(0, 7, 7), controls(1, 7, 7)
    assert (first["random"] != second["random"]).any()
    np.testing.assert_array_equal(first["centre Gaussian"], second["centre Gaussian"])
    assert first["centre Gaussian"].argmax() == 24


def test_the_focus_is_the_share_in_a_quarter() -> None:
    values = np.full((3, 3), -1.0, np.float32)
    values[0, 0], values[1, 1], values[2, 2] = 2, 4, 2
    # The cell in the middle belongs to all quarters alike.
    assert focus(values, 0) == pytest.approx((2 + 1) / 8)
    assert focus(values, 1) == pytest.approx(1 / 8)
    assert focus(values, 3) == pytest.approx(3 / 8)
    assert focus(-np.ones((2, 2), np.float32), 0) is None


def test_a_mosaic_has_a_picture_in_each_quarter() -> None:
    tiles = [np.full((6, 10, 3), value, np.uint8) for value in (10, 20, 30, 40)]
    whole = mosaic(tiles, 6, 10)
    assert whole.shape == (6, 10, 3)
    quarters = [whole[:3, :5], whole[:3, 5:], whole[3:, :5], whole[3:, 5:]]
    assert [set(quarter.ravel().tolist()) for quarter in quarters] == [{10}, {20}, {30}, {40}]
