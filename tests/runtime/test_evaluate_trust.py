"""What `foveate evaluate` says of confidence and prediction sets."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands import calibrate, evaluate
from foveate_runtime.trust.answer import Assessor
from foveate_runtime.trust.reliability import expected_calibration_error, reliability
from foveate_runtime.trust.shares import softmax

from ..colours import BIAS, LABELS, SIZE


def write_folder(root: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Write pictures of one colour; return their logits and classes, as a folder is read."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, 3, 120)
    levels = random.integers(0, 120, (120, 3))
    levels[np.arange(120), targets] += 60
    for number, (level, target) in enumerate(zip(levels, targets, strict=True)):
        (root / LABELS[target]).mkdir(parents=True, exist_ok=True)
        pixels = np.tile(level.astype(np.uint8), (SIZE, SIZE, 1))
        Image.fromarray(pixels).save(root / LABELS[target] / f"{number}.png")
    return levels.astype(np.float32) / 255 + np.array(BIAS, np.float32), targets


def test_evaluate_measures_the_calibration_and_the_sets_on_other_pictures(
    write_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "fitted", 0)
    logits, targets = write_folder(tmp_path / "other", 1)
    bundle = write_bundle()
    arguments = ["--repository", str(bundle.parents[1]), "--model", "colours", "--json"]

    def evaluated(data: str) -> tuple[dict, str]:
        capsys.readouterr()
        assert evaluate.main([*arguments, "--data", str(tmp_path / data)]) == 0
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    before, _ = evaluated("other")
    plain = softmax(logits)
    right = plain.argmax(1) == targets
    expected = expected_calibration_error(reliability(plain.max(1), right))
    assert before["ece"] == pytest.approx(expected, abs=1e-4)
    assert (before["ece_calibrated"], before["sets"]) == (None, [])

    assert calibrate.main([str(bundle), "--data", str(tmp_path / "fitted")]) == 0
    after, warned = evaluated("other")
    assert "pictures of the calibration" not in warned
    trust = Bundle.open(bundle.parent / "2").manifest.variants[0].trust
    assert trust is not None
    assessor = Assessor(trust, Bundle.open(bundle.parent / "2").manifest.policy, "softmax")
    confidence = assessor.confidence(logits)
    assert confidence is not None
    bins = reliability(confidence.max(1), right)
    assert after["ece_calibrated"] == pytest.approx(expected_calibration_error(bins), abs=1e-3)
    assert after["ece_calibrated"] < after["ece"]
    assert [(x["coverage"], x["set_method"]) for x in after["sets"]] == [
        (coverage, method) for coverage in (0.9, 0.95) for method in ("lac", "raps")
    ]
    members = assessor.members(logits, trust.sets[0], "lac")
    first = after["sets"][0]
    assert first["covered"] == pytest.approx(members[np.arange(120), targets].mean(), abs=0.01)
    assert first["mean_size"] == pytest.approx(members.sum(1).mean(), abs=0.02)

    _, warned = evaluated("fitted")
    assert "these are the pictures of the calibration" in warned


def test_evaluate_says_it_in_words(
    write_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "data", 0)
    bundle = write_bundle()
    assert calibrate.main([str(bundle), "--data", str(tmp_path / "data")]) == 0
    arguments = ["--repository", str(bundle.parents[1]), "--model", "colours"]
    assert evaluate.main([*arguments, "--data", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    assert "expected calibration error " in said
    assert "sets of raps for a coverage of 0.95: " in said


def test_independent_labels_have_no_reliability_of_a_best_class(
    write_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "data", 0)
    bundle = write_bundle(scores="sigmoid")
    arguments = ["--repository", str(bundle.parents[1]), "--model", "colours", "--json"]
    assert evaluate.main([*arguments, "--data", str(tmp_path / "data")]) == 0
    assert "ece" not in json.loads(capsys.readouterr().out)
