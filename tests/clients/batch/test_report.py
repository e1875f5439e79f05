"""The report of a batch: what is in it, however the run went."""

import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from foveate_client.batch.sources import file_of
from foveate_client.commands import batch
from foveate_client.report.tiles import PICTURE

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def data(path) -> dict:
    return json.loads(DATA.search(path.read_text(encoding="utf-8"))[1])


def test_every_picture_has_the_map_of_the_class_found_and_of_the_right_one(
    run, folder, red, tmp_path
):
    page = tmp_path / "page.html"
    assert run(folder, red, "--out", tmp_path / "t.jsonl", "--report", page)[0] == 0
    found = data(page)
    # The mistake comes first.
    assert found["names"][0] == str(red)
    assert found["wrong"] == [1] + [0] * 60
    assert (found["targets"][0], found["found"][0]) == ([2], [0])
    assert found["tiles"][0][3] == [PICTURE, 0, 2]
    assert all(each[3] == [PICTURE, classes[0]] for each, classes in zip(
        found["tiles"][1:], found["found"][1:], strict=True
    ))  # fmt: skip
    assert len(found["sheets"]["files"]) == 2
    assert all(x.startswith("data:image/jpeg;base64,") for x in found["sheets"]["files"])
    assert not page.with_name("page_files").exists()
    assert 'data-target="2" data-found="0"' in page.read_text(encoding="utf-8")


def test_pictures_without_a_right_class_or_an_answer_are_there_as_such(run, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16), (0, 200, 0)).save(tmp_path / "pictures" / "green.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"not a picture")
    page = tmp_path / "page.html"
    code, printed, _ = run(
        tmp_path / "pictures", "--out", tmp_path / "t.jsonl", "--report", page, "--json"
    )
    assert code == 1
    assert json.loads(printed)["files"]["report"] == str(page)
    found, text = data(page), page.read_text(encoding="utf-8")
    assert (found["targets"], found["wrong"]) == ([None], [None])
    assert "Confusions" not in text
    assert "Pictures without an answer" in text
    assert "broken.png" in text


def test_a_run_that_goes_on_has_the_pictures_of_before(run, folder, red, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    arguments = (folder, red, "--out", tmp_path / "t.jsonl", "--report", page, "--ordered")

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(batch, "finish", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(*arguments)
    assert not page.exists()
    code, printed, _ = run(*arguments, "--json")
    assert (code, json.loads(printed)["done_before"]) == (0, 61)
    resumed = data(page)
    assert run(*arguments, "--overwrite")[0] == 0
    at_once = data(page)
    assert sorted(resumed["names"]) == sorted(at_once["names"])
    assert resumed["tiles"][0] == at_once["tiles"][0] == [0, 112, 112, [PICTURE, 0, 2]]


def test_a_run_without_pictures_does_not_go_on_as_one_with_them(run, folder, tmp_path, monkeypatch):
    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(batch, "finish", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(folder, "--out", tmp_path / "t.jsonl")
    code, _, told = run(folder, "--out", tmp_path / "t.jsonl", "--report", tmp_path / "page.html")
    assert code == 1
    assert "--report" in told


def test_a_report_in_no_folder_is_refused_before_the_first_picture(run, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(folder, "--out", tmp_path / "t.jsonl", "--report", tmp_path / "none" / "page.html")
    assert ended.value.code == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not list(tmp_path.glob("t.jsonl*"))


def test_probabilities_are_the_scores_of_all_classes_in_their_order(
    run, folder, photographs, tmp_path
):
    out = tmp_path / "t.parquet"
    assert run(folder, "--out", out, "--ordered", "--probabilities", "--top-k", 1)[0] == 0
    table = pq.read_table(out)
    assert table.schema.names[-1] == "probabilities"
    assert "class_2" not in table.schema.names
    found = np.stack(table["probabilities"].to_numpy())
    assert found == pytest.approx(np.stack([crop.scores for crop in photographs]), rel=1e-4)


def test_fiftyone_gets_the_prediction_and_the_right_class_by_path(run, folder, red, tmp_path):
    shutil.copy(red, tmp_path / "pictures" / "no class.png")
    place = tmp_path / "fiftyone"
    arguments = (folder, tmp_path / "pictures", "--out", tmp_path / "t.jsonl", "--fiftyone", place)
    assert run(*arguments)[0] == 0
    read = {
        name: json.loads((place / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("predictions", "ground_truth")
    }
    assert read["predictions"]["classes"] == ["red", "forest green", "blue, azure"]
    assert len(read["predictions"]["labels"]) == 62
    assert len(read["ground_truth"]["labels"]) == 61
    predicted = read["predictions"]["labels"][str(red)]
    assert predicted["label"] == 0
    assert 0.9 < predicted["confidence"] <= 1
    assert read["ground_truth"]["labels"][str(red)] == 2


def test_a_picture_in_a_shard_has_no_file_of_its_own(tmp_path):
    (tmp_path / "a.png").touch()
    assert file_of(str(tmp_path / "a.png")) == tmp_path / "a.png"
    assert file_of((tmp_path / "a.png").as_uri()) == tmp_path / "a.png"
    assert file_of(f"{tmp_path / 'a.tar'}#a.png") is None
