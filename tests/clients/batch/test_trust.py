"""How far answers can be believed, in the tables and the summary of a batch."""

import csv
import json
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from foveate_client.batch.journal import Journal, Row, RowTrust
from foveate_client.commands import batch
from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands import evaluate
from foveate_runtime.trust.answer import Assessor

from ...colours import BIAS, LABELS
from ..test_trust import calibrated_repository

COVERAGE = 0.95


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("batch")
    calibrated_repository(root)
    return root


def run(root: Path, out: Path, *arguments: str, model: str = "colours") -> int:
    source = [str(root / "data"), "--repository", str(root / "repository"), "--model", model]
    return batch.main([*source, "--out", str(out), "--ordered", *arguments])


def test_the_columns_hold_what_each_answer_says(root: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        assert run(root, tmp_path / f"out.{suffix}", "--coverage", str(COVERAGE)) == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    bundle = Bundle.open(root / "repository" / "colours" / "2")
    trust = bundle.manifest.variants[0].trust
    assert trust is not None
    assessor = Assessor(trust, bundle.manifest.policy, "softmax")
    for row in rows:
        scores = np.array([row[f"score_{rank}"] for rank in (1, 2, 3)])
        logits = np.empty(3)
        logits[[row[f"class_{rank}"] for rank in (1, 2, 3)]] = np.log(scores)
        (expected,) = assessor.assess(logits[None], COVERAGE)
        assert row["prediction_set"] == list(expected.prediction_set)
        assert expected.confidence is not None
        assert row["confidence"] == pytest.approx(expected.confidence.max(), rel=1e-3)
        assert isinstance(row["abstained"], bool)
        assert 0 <= row["ood_percentile"] <= 100
    with (tmp_path / "out.csv").open() as file:
        lines = list(csv.DictReader(file))
    sets = [" ".join(map(str, row["prediction_set"])) for row in rows]
    assert [line["prediction_set"] for line in lines] == sets
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [x["prediction_set"] for x in table] == [x["prediction_set"] for x in rows]
    # Another run has other batches, and a picture at the limit may lie on its other side.
    for others in (
        [line["abstained"] == "True" for line in lines],
        [x["abstained"] for x in table],
    ):
        different = [x != row["abstained"] for x, row in zip(others, rows, strict=True)]
        assert sum(different) <= 3
    assert any(row["abstained"] for row in rows)
    # Another order of summation, which may cross a percentile that many pictures share.
    for name, most in (("confidence", 1e-4), ("ood_percentile", 1.01)):
        assert [x[name] for x in table] == pytest.approx([x[name] for x in rows], abs=most)


def test_the_summary_is_what_evaluate_measures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--coverage", str(COVERAGE), "--set-method", "raps", "--json"]
    assert run(root, tmp_path / "out.csv", *arguments) == 0
    found = json.loads(capsys.readouterr().out)["evaluation"]
    model = ["--repository", str(root / "repository"), "--model", "colours", "--json"]
    assert evaluate.main([*model, "--data", str(root / "data")]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert found["ece"] == pytest.approx(measured["ece"], abs=1e-4)
    assert found["ece_calibrated"] == pytest.approx(measured["ece_calibrated"], abs=1e-4)
    (sets,) = [x for x in measured["sets"] if (x["coverage"], x["set_method"]) == (0.95, "raps")]
    for name in ("coverage", "covered", "mean_size", "empty"):
        assert found["sets"][name] == pytest.approx(sets[name])
    assert 0 < found["sets"]["abstained"] < 0.05
    page = (tmp_path / "out.report.html").read_text()
    assert page.count('aria-label="reliability diagram"') == 2
    assert "in the set for 0.95" in page


def test_a_table_without_trust_has_no_such_columns(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path / "out.csv") == 0
    with (tmp_path / "out.csv").open() as file:
        assert not {"confidence", "prediction_set"} & set(csv.DictReader(file).fieldnames or ())
    assert 'aria-label="reliability diagram"' in (tmp_path / "out.report.html").read_text()
    assert "After calibration" not in (tmp_path / "out.report.html").read_text()


def test_a_model_without_calibration_ends_the_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, tmp_path / "out.csv", "--trust", model="plain") == 1
    assert "foveate calibrate BUNDLE --data DIR" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_a_journal_of_before_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out.journal"
    Journal(path, {}).close()
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE results DROP COLUMN trust")
    database.close()
    trust = RowTrust(
        confidence=0.5, coverage=0.9, prediction_set=(1, 2), ood_percentile=3.5, abstained=True
    )
    row = Row(
        name="a.png",
        position=0,
        label=LABELS[0],
        class_ids=np.arange(3, dtype=np.int32),
        scores=np.array(BIAS, np.float32),
        vectors=np.empty(0, np.float32),
        cam=None,
        trust=trust,
    )
    with Journal(path, {}) as journal:
        journal.add(row)
        (kept,) = journal.rows()
    assert kept.trust is not None
    assert (kept.trust.confidence, list(kept.trust.prediction_set)) == (0.5, [1, 2])
    assert (kept.trust.ood_percentile, kept.trust.abstained) == (3.5, True)
