"""Tables of pictures with several labels, and what is measured on them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate_runtime.evaluation.labelled import LabelledError, NoPicturesError
from foveate_runtime.evaluation.multilabel import average_precision, open_table

LABELS = ("cat", "tiger cat", "sofa", "person")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "val").mkdir()
    for name in ("a.png", "b.png", "val/c.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def read(folder: Path, text: str, limit: int | None = None) -> dict[str, list[str]]:
    path = folder / "labels.csv"
    path.write_bytes(text.encode("utf-8-sig"))
    table = open_table(path, LABELS, limit)
    assert [row for _, _, row in table] == list(range(len(table)))
    return {
        str(file.relative_to(folder)): [LABELS[c] for c in np.flatnonzero(present)]
        for file, present in zip(table.files, table.present, strict=True)
    }


@pytest.mark.parametrize(
    "text",
    [
        "picture,labels\na.png,cat;sofa\nb.png,\nval/c.png,tiger cat\n",
        "image_name,tags\r\na.png,cat|sofa\r\nb.png,\r\nval/c.png,tiger cat|\r\n",
        "fname,labels,is_valid\na.png,cat sofa,True\nb.png,,False\nval/c.png,1,True\n",
        "a.png,0 2\nb.png\nval/c.png,tiger cat\n",
        "file, cat, tiger cat, sofa, person\na.png,1,0,1,0\nb.png, 0, 0,0,0\nval/c.png,0,1,0,0\n",
        "filename,sofa,tiger cat,cat\na.png,1,0,1\nb.png,0,0,0\nval/c.png,0,1,0\n",
    ],
    ids=["semicolons", "bars", "spaces", "no heading", "columns", "some columns"],
)
def test_a_row_holds_a_picture_and_its_labels(folder: Path, text: str) -> None:
    assert read(folder, text) == {
        "a.png": ["cat", "sofa"],
        "b.png": [],
        "val/c.png": ["tiger cat"],
    }


def test_a_limit_takes_rows_from_all_over_the_file(folder: Path) -> None:
    text = "picture,labels\na.png,cat\nb.png,sofa\nval/c.png,person\n"
    assert list(read(folder, text, 2)) == ["a.png", "b.png"]
    assert len(read(folder, text, 9)) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("picture,labels\na.png,cat;dog\n", "labels.csv, line 2: 'dog' is no label of the model"),
        ("picture,labels\na.png,4\n", "line 2: '4' is no label"),
        ("picture,labels\na.png,cat\nd.png,cat\n", "line 3: no picture d.png"),
        ("d.png,cat\n", "line 1: no picture d.png"),
        ("picture,cat,dog\na.png,1,0\n", "its heading names dog, no labels of the model"),
        ("picture,cat,sofa\na.png,1,0.5\n", "line 2: 2 columns of 0 or 1 are expected"),
        ("picture,cat,sofa\na.png,1\n", "line 2: 2 columns of 0 or 1 are expected"),
        ("a.png,1,0,0,0\n", "more than two columns need a heading"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(folder: Path, text: str, said: str) -> None:
    with pytest.raises(LabelledError, match=said):
        read(folder, text)


@pytest.mark.parametrize("text", ["", "picture,labels\n"])
def test_a_table_without_pictures_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(NoPicturesError, match="names no pictures"):
        read(folder, text)
    with pytest.raises(NoPicturesError, match="no such file"):
        open_table(folder / "missing.csv", LABELS)


def by_definition(scores: np.ndarray, present: np.ndarray) -> float:
    """The sum over thresholds, each counted anew."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        found = scores >= threshold
        right = (found & present).sum()
        total += (right / present.sum() - recall) * right / found.sum()
        recall = right / present.sum()
    return float(total)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_average_precision_is_that_of_its_definition(levels: int) -> None:
    draws = np.random.default_rng(levels)
    for _ in range(20):
        scores = draws.integers(levels, size=40).astype(np.float32)
        present = draws.random(40) < 0.3
        present[3] = True
        assert average_precision(scores, present) == pytest.approx(by_definition(scores, present))


def test_average_precision_of_known_cases() -> None:
    # The example in scikit-learn's documentation of average_precision_score.
    scores, present = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert average_precision(scores, present) == pytest.approx(0.8333, abs=1e-4)
    assert average_precision(scores, scores > 0.3) == 1
    assert average_precision(np.zeros(4), present) == 0.5
