"""`foveate evaluate --report`: the page that the client's entry point writes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate_runtime.commands import evaluate
from foveate_runtime.evaluation import report

from ..colours import LABELS, SIZE

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def data(path: Path) -> dict:
    return json.loads(DATA.search(path.read_text(encoding="utf-8"))[1])


def save(path: Path, level: list[int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.tile(np.array(level, np.uint8), (SIZE, SIZE, 1))).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of each colour, a blue one among the first, and one that is none."""
    folder = tmp_path / "data"
    for number, label in enumerate(LABELS):
        for each in range(6):
            level = [10 * each] * 3
            level[number] += 150
            save(folder / label / f"{each}.png", level)
    save(folder / LABELS[0] / "wrong.png", [0, 0, 250])
    (folder / LABELS[0] / "broken.png").write_bytes(b"not a picture")
    return folder


def run(bundle: Path, data: Path, page: Path, *more: str) -> int:
    arguments = ["--repository", str(bundle.parents[1]), "--model", "colours", "--json"]
    return evaluate.main([*arguments, "--data", str(data), "--report", str(page), *more])


def test_the_report_holds_what_evaluate_counts(
    write_bundle: Callable[..., Path],
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "page.html"
    assert run(write_bundle(), pictures, page) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["report"] == [str(page)]
    found = data(page)
    assert len(found["names"]) == result["images"] == 19
    assert found["wrong"].count(0) / 19 == pytest.approx(result["top1"])
    assert found["names"][0].endswith("wrong.png")
    assert (found["targets"][0], found["found"][0]) == ([0], [2])
    text = page.read_text(encoding="utf-8")
    assert f"{result['top1']:.2%}" in text
    assert f"{result['ece']:.2%}" in text
    assert "broken.png" in text


def test_a_table_of_labels_has_a_report_without_confusions(
    write_bundle: Callable[..., Path],
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    red = save(tmp_path / "red.png", [250, 0, 0])
    both = save(tmp_path / "both.png", [250, 0, 250])
    table = tmp_path / "labels.csv"
    lines = [f"{red.name},{LABELS[0]}", f"{both.name},{LABELS[0]};{LABELS[1]}"]
    table.write_text("\n".join(["picture,labels", *lines]), encoding="utf-8")
    page = tmp_path / "page.html"
    assert run(write_bundle(scores="sigmoid"), table, page, "--threshold", "0.6") == 0
    result = json.loads(capsys.readouterr().out)
    found = data(page)
    assert sorted(map(Path, found["names"])) == [both, red]
    at = found["names"].index(str(both))
    assert found["targets"][at] == [0, 1]
    assert (found["wrong"][at], at) == (1, 0)
    text = page.read_text(encoding="utf-8")
    assert "Confusions" not in text
    assert f"{result['mean_average_precision']:.2%}" in text


def test_without_the_client_the_line_names_it(
    write_bundle: Callable[..., Path],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(report, "entry_points", lambda **_: ())
    assert run(write_bundle(), pictures, tmp_path / "page.html") == 2
    assert "pip install foveate-client" in capsys.readouterr().err
