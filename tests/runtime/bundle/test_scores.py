"""Scores of logits by kind, and the manifest's word for it."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from foveate_runtime.bundle.bundle import Bundle, BundleError
from foveate_runtime.bundle.scores import score

from ...colours import write_colour_bundle

LOGITS = np.array([[0.0, 1.0, -2.0], [1000.0, -1000.0, 88.0], [-30.0, 30.0, 0.0]], np.float32)


def test_softmax_is_over_the_classes_of_a_picture() -> None:
    exponentials = np.exp(LOGITS - LOGITS.max(1, keepdims=True), dtype=np.float64)
    expected = exponentials / exponentials.sum(1, keepdims=True)
    np.testing.assert_allclose(score(LOGITS, "softmax"), expected, rtol=1e-6)


def test_a_sigmoid_is_of_each_label_by_itself_and_overflows_nowhere() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score(LOGITS, "sigmoid")
    assert scores.dtype == np.float32
    small = LOGITS[[0, 2]].astype(np.float64)
    np.testing.assert_allclose(scores[[0, 2]], 1 / (1 + np.exp(-small)), rtol=1e-6)
    assert scores[1].tolist() == [1, 0, 1]


def test_none_leaves_the_logits_as_they_are() -> None:
    assert score(LOGITS, "none") is LOGITS


def test_a_bundle_of_before_has_a_softmax(tmp_path: Path) -> None:
    manifest = Bundle.open(write_colour_bundle(tmp_path)).manifest
    assert (manifest.scores, manifest.assumptions) == ("softmax", {})


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "none"])
def test_a_bundle_says_what_its_scores_are(tmp_path: Path, kind: str) -> None:
    path = write_colour_bundle(tmp_path, scores=kind)
    assert Bundle.open(path).manifest.scores == kind
    assert json.loads(Bundle.open(path).manifest.model_dump_json())["scores"] == kind


def test_unknown_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest.json: scores: Input should be 'softmax'"):
        Bundle.open(write_colour_bundle(tmp_path, scores="percent"))
