"""Tables of a model whose scores are not a softmax, and a threshold for them."""

import csv
import json
import shutil
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from foveate_client.batch.journal import Journal


class Scored(NamedTuple):
    kind: str
    source: tuple[object, ...]


@pytest.fixture(params=["softmax", "sigmoid", "none"])
def scored(request, repository, tmp_path):
    """A kind of scores, and the arguments that name a repository whose model has them."""
    kind = request.param
    copied = tmp_path / "models"
    shutil.copytree(repository, copied)
    manifest = copied / "colours/1/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"scores": kind}))
    return Scored(kind, ("--repository", copied))


def scores_of(crop, kind):
    logits = crop.means
    return {
        "softmax": crop.scores,
        "sigmoid": 1 / (1 + np.exp(-logits)),
        "none": logits,
    }[kind]


LEAST = {"softmax": 0.3, "sigmoid": 0.98, "none": 3.5}


def test_a_threshold_leaves_what_is_below_it_empty(run, folder, photographs, tmp_path, scored):
    kind, source = scored
    out = tmp_path / "results.jsonl"
    options = (folder, "--ordered", "--threshold", LEAST[kind])
    assert run(*options, "--out", out, source=source)[0] == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    reached = []
    for line, crop in zip(lines, photographs, strict=True):
        scores = scores_of(crop, kind)
        ranked = [int(c) for c in np.argsort(-scores) if scores[c] >= LEAST[kind]]
        reached.append(len(ranked))
        assert [line.get(f"class_{n}") for n in (1, 2, 3)] == [*ranked, None, None, None][:3]
        for rank, class_id in enumerate(ranked, 1):
            assert line[f"score_{rank}"] == pytest.approx(scores[class_id], rel=1e-4)
    assert len(set(reached)) > 1

    table = tmp_path / "results.parquet"
    assert run(*options, "--out", table, source=source)[0] == 0
    read = pq.read_table(table).to_pylist()
    assert f"class_{max(reached) + 1}" not in read[0]
    for row, line in zip(read, lines, strict=True):
        assert {k: v for k, v in row.items() if v is not None} == {
            k: pytest.approx(v, rel=1e-4) if isinstance(v, float) else v for k, v in line.items()
        }

    bounded = tmp_path / "bounded.csv"
    assert run(*options, "--out", bounded, "--top-k", 1, source=source)[0] == 0
    with bounded.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "image",
        "target",
        "target_label",
        "correct",
        "class_1",
        "label_1",
        "score_1",
    ]
    assert [bool(row["class_1"]) for row in rows] == [count > 0 for count in reached]


def test_only_a_softmax_is_judged_by_its_calibration(run, folder, tmp_path, scored):
    kind, source = scored
    out = tmp_path / "results.csv"
    code, printed, _ = run(folder, "--out", out, "--json", source=source)
    assert code == 0
    found = json.loads(printed)["evaluation"]
    assert (found["top1"], found["images"]) == (1, 60)
    page = (tmp_path / "results.report.html").read_text(encoding="utf-8")
    assert (found["ece"] is not None) == ("Calibration" in page) == (kind == "softmax")
    _, printed, _ = run(folder, "--out", out, "--overwrite", source=source)
    assert ("calibration" in printed) == (kind == "softmax")


@pytest.mark.parametrize("threshold", ["-1", "2", "nan"])
def test_a_threshold_that_no_score_can_have_is_refused(run, folder, tmp_path, scored, threshold):
    kind, source = scored
    out = tmp_path / "results.csv"
    code, _, err = run(folder, "--out", out, f"--threshold={threshold}", source=source)
    if kind == "none" and threshold != "nan":
        assert code == 0
        return
    assert code == 1
    assert f"--threshold is {threshold}; the limit is 0 to 1" in err
    assert f"({kind})" in err


def test_a_run_with_another_threshold_does_not_go_on(run, folder, tmp_path, scored):
    _, source = scored
    out = tmp_path / "results.csv"
    journal = out.with_name("results.csv.journal")
    settings = {
        "model": "colours", "version": "1", "--top-k": 3, "--threshold": None,
        "--embeddings": [], "--feature-maps": [], "--cam": None, "--cam-method": "",
    }  # fmt: skip
    with Journal(journal, settings):
        pass
    code, _, err = run(folder, "--out", out, "--threshold", 0.5, source=source)
    assert code == 1
    assert "belongs to a run with --threshold None, not 0.5" in err
