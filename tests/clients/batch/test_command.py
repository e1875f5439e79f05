import csv
import errno
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from foveate.status import ErrorStatus, StatusError
from foveate_client._results import Heatmap
from foveate_client.batch import arrow, rows
from foveate_client.commands import batch, classify

from ...conftest import served
from ...waiting import LIMIT_SECONDS

INVALID_ARGUMENT, FAILED_PRECONDITION = 3, 9


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def broken(tmp_path):
    """A file that is no picture."""
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"not a picture")
    return path


def test_a_folder_becomes_a_table_of_the_best_classes(run, folder, photographs, tmp_path):
    out = tmp_path / "new" / "results.parquet"
    assert run(folder, "--out", out, "--ordered", "--top-k", 2)[0] == 0
    table = pq.read_table(out).to_pylist()
    assert [line["image"] for line in table] == [str(crop.path) for crop in photographs]
    for line, crop in zip(table, photographs, strict=True):
        ranking = np.argsort(-crop.means)
        assert list(line) == [
            "image", "target", "target_label", "correct", "class_1",
            "label_1", "score_1", "class_2", "label_2", "score_2",
        ]  # fmt: skip
        assert line["target"] == crop.best
        assert line["target_label"] == line["label_1"]
        assert line["correct"] is True
        assert [line["class_1"], line["class_2"]] == ranking[:2].tolist()
        assert line["label_1"] == ("red", "forest green", "blue, azure")[crop.best]
        assert line["score_1"] == pytest.approx(crop.scores.max(), rel=1e-4)


def test_every_format_holds_the_same(run, folder, tmp_path):
    tables = {}
    for suffix in ("parquet", "csv", "jsonl"):
        out = tmp_path / f"results.{suffix}"
        assert run(folder, "--out", out, "--ordered")[0] == 0
    tables["parquet"] = pq.read_table(tmp_path / "results.parquet").to_pylist()
    tables["jsonl"] = read_json_lines(tmp_path / "results.jsonl")
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as lines:
        tables["csv"] = list(csv.DictReader(lines))
    for name in ("jsonl", "csv"):
        for read, line in zip(tables[name], tables["parquet"], strict=True):
            assert read.keys() == line.keys()
            for key, value in line.items():
                # Each run has batches of its own, and an engine's rounding differs with the size.
                same = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
                assert type(value)(read[key]) == same


def test_embeddings_and_feature_maps_are_fixed_size_arrays(run, folder, photographs, tmp_path):
    out = tmp_path / "results.parquet"
    code, *_ = run(
        folder, "--out", out, "--ordered", "--embeddings", "last", "--feature-maps", "planes"
    )
    assert code == 0
    table = pq.read_table(out)
    assert str(table.schema.field("embedding.planes").type) == "fixed_size_list<element: float>[3]"
    embeddings = np.stack(table["embedding.planes"].to_numpy())
    assert embeddings == pytest.approx(np.stack([crop.means for crop in photographs]), rel=1e-4)
    maps = table["features.planes"].combine_chunks().to_numpy_ndarray()
    assert maps.shape == (60, 3, 16, 16)
    assert maps[7] == pytest.approx(photographs[7].pixels.transpose(2, 0, 1) * (8 / 255), rel=1e-5)
    lines = tmp_path / "results.jsonl"
    run(folder, "--out", lines, "--ordered", "--embeddings", "planes")
    listed = [line["embedding.planes"] for line in read_json_lines(lines)]
    assert np.array(listed) == pytest.approx(embeddings, rel=1e-4)


def test_a_model_without_maps_is_said_before_the_first_picture(server, coffee, tmp_path, capsys):
    del server.service.model.cam_methods[:]
    out, cams = tmp_path / "results.jsonl", tmp_path / "cams"
    arguments = [coffee, "--out", out, "--cam", cams, "--address", server.address]
    assert batch.main([*map(str, arguments)]) == 0
    told = "pets has no class activation maps: its export does not say why"
    assert capsys.readouterr().err.count(told) == 1
    (line,) = read_json_lines(out)
    assert "cam" not in line
    assert not cams.exists()


def test_overlays_are_drawn_into_a_folder(run, photographs, tmp_path):
    out, cams = tmp_path / "results.jsonl", tmp_path / "cams"
    first, second = photographs[0].path, photographs[-1].path
    assert run(first, second, "--out", out, "--cam", cams)[0] == 0
    for line, source in zip(read_json_lines(out), (first, second), strict=True):
        overlay = Path(line["cam"])
        assert overlay.is_relative_to(cams)
        assert overlay.name == f"{source.name}.cam.jpg"
        with Image.open(overlay) as image:
            assert (image.format, image.size) == ("JPEG", (16, 16))
    assert len(list(cams.rglob("*.jpg"))) == 2


def test_errors_have_their_own_file(run, photographs, broken, tmp_path):
    out = tmp_path / "results.csv"
    missing = tmp_path / "list.txt"
    missing.write_text(f"{tmp_path / 'missing.png'}\n{photographs[0].path}\n")
    code, printed, err = run(broken, missing, "--out", out, "--json")
    assert (code, err) == (1, "")
    summary = json.loads(printed)
    assert (summary["results"], summary["errors"]) == (1, 2)
    assert summary["files"]["errors"] == str(tmp_path / "results.errors.jsonl")
    first, second = read_json_lines(tmp_path / "results.errors.jsonl")
    assert first["image"] == str(broken)
    assert first["code"] == "INVALID_ARGUMENT"
    assert (second["image"], second["reason"]) == (
        str(tmp_path / "missing.png"),
        "IMAGE_UNREADABLE",
    )
    assert not (tmp_path / "results.csv.journal").exists()


def test_the_summary_tells_accuracy_where_folders_name_classes(run, folder, tmp_path):
    wrong = tmp_path / "azure"
    wrong.mkdir()
    Image.new("RGB", (16, 16), (200, 10, 10)).save(wrong / "red.png")
    Image.new("RGB", (16, 16), (0, 0, 0)).save(tmp_path / "unlabelled.png")
    out = tmp_path / "results.csv"
    code, printed, _ = run(folder, wrong, tmp_path / "unlabelled.png", "--out", out, "--json")
    assert code == 0
    summary = json.loads(printed)
    assert summary["results"] == 62
    found = summary["evaluation"]
    assert found["images"] == 61
    assert found["top1"] == pytest.approx(60 / 61)
    assert found["top5"] == 1
    assert found["confusions"] == [{"label": "blue, azure", "taken_for": "red", "images": 1}]
    assert "blue, azure" in (tmp_path / "results.report.html").read_text(encoding="utf-8")
    code, printed, _ = run(folder, wrong, "--out", out, "--overwrite")
    assert f"top 1 {60 / 61:.1%}" in printed
    assert "blue, azure taken for red: 1" in printed


def test_a_file_of_labels_names_the_folders(run, photographs, tmp_path):
    source = tmp_path / "n04960277"
    source.mkdir()
    (source / "a.png").write_bytes(next(x for x in photographs if x.best == 0).path.read_bytes())
    labels = tmp_path / "labels.csv"
    labels.write_text("folder,class\nn04960277,red\n")
    arguments = (source, "--out", tmp_path / "results.csv", "--overwrite", "--json")
    assert json.loads(run(*arguments)[1])["evaluation"] is None
    assert json.loads(run(*arguments, "--labels", labels)[1])["evaluation"]["top1"] == 1


def test_shards_and_tables_are_read_like_folders(run, photographs, tmp_path):
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for number, crop in enumerate(photographs[:5]):
            tar.add(crop.path, f"{number}.png")
    out = tmp_path / "results.jsonl"
    assert run(shard, "--out", out)[0] == 0
    lines = read_json_lines(out)
    assert [line["image"] for line in lines] == [f"{shard}#{x}.png" for x in range(5)]
    assert [line["class_1"] for line in lines] == [crop.best for crop in photographs[:5]]


def test_a_picture_that_comes_twice_is_there_once(run, photographs, tmp_path):
    path = photographs[0].path
    out = tmp_path / "results.jsonl"
    code, printed, _ = run(path, path, path.parent, "--out", out, "--json")
    assert code == 0
    count = len(list(path.parent.iterdir()))
    summary = json.loads(printed)
    assert (summary["read"], summary["classified"]) == (count + 2, count)
    assert summary["named_twice"] == 2
    names = [line["image"] for line in read_json_lines(out)]
    assert len(names) == len(set(names)) == len(list(path.parent.iterdir()))


def test_what_exists_is_kept_unless_it_may_be_replaced(run, photographs, tmp_path):
    out = tmp_path / "results.csv"
    assert run(photographs[0].path, "--out", out)[0] == 0
    before = out.read_bytes()
    code, printed, err = run(photographs[1].path, "--out", out)
    assert (code, printed, out.read_bytes()) == (1, "", before)
    assert err == f"foveate batch: exists already; --overwrite replaces it: {out}\n"
    assert run(photographs[1].path, "--out", out, "--overwrite")[0] == 0
    assert out.read_bytes() != before


def test_failures_of_a_finished_table_are_tried_again_when_asked_for(
    run, photographs, broken, tmp_path
):
    out = tmp_path / "results.jsonl"
    sound = photographs[0].path
    command = (sound, broken, "--out", out)
    code, printed, _ = run(*command)
    assert code == 1
    assert "--retry-errors tries them again" in " ".join(printed.split())
    before = out.read_bytes()
    assert len(read_json_lines(out)) == 1
    code, _, err = run(*command)
    assert (code, out.read_bytes()) == (1, before)
    assert "--retry-errors tries its failures again, --overwrite replaces it" in err
    code, printed, _ = run(*command, "--retry-errors", "--json")
    summary = json.loads(printed)
    assert (code, summary["done_before"], summary["errors"]) == (1, 1, 1)
    broken.write_bytes(photographs[1].path.read_bytes())
    code, printed, _ = run(*command, "--retry-errors", "--json")
    summary = json.loads(printed)
    assert (code, summary["done_before"], summary["classified"]) == (0, 1, 1)
    assert [line["image"] for line in read_json_lines(out)] == [str(sound), str(broken)]
    assert not list(tmp_path.glob("*.journal*"))
    assert not (tmp_path / "results.errors.jsonl").exists()
    code, _, err = run(*command, "--retry-errors")
    assert code == 1
    assert err == f"foveate batch: {out} has no failures to try again\n"


def breaking(server, picture):
    """Have the server break at a picture until what is returned is called."""
    answer = server.service.classify

    def classify(request):
        if request.encoded == picture.read_bytes():
            raise RuntimeError("the test breaks the server")
        return answer(request)

    def mend():
        server.service.classify = answer

    server.service.classify = classify
    return mend


def test_a_journal_of_another_folder_is_refused(run, server, photographs, tmp_path, monkeypatch):
    for folder, pictures in (("one", photographs[:6]), ("two", photographs[6:8])):
        (tmp_path / folder / "pictures").mkdir(parents=True)
        for number, crop in enumerate(pictures):
            target = tmp_path / folder / "pictures" / f"{number}.png"
            target.write_bytes(crop.path.read_bytes())
    mend = breaking(server, photographs[4].path)
    source = ("--address", server.address)
    out = tmp_path / "results.jsonl"
    command = ("pictures", "--ordered", "--out", out, "--in-flight", 1)
    monkeypatch.chdir(tmp_path / "one")
    assert run(*command, source=source)[0] == 1
    mend()
    monkeypatch.chdir(tmp_path / "two")
    code, _, err = run(*command, source=source)
    assert code == 1
    assert f"belongs to a run with sources ['{tmp_path}/one/pictures']" in err
    assert not out.exists()
    # From elsewhere by another path, names are others: nothing of the first run is mixed in.
    monkeypatch.chdir(tmp_path)
    code, printed, _ = run("one/pictures", *command[1:], "--json", source=source)
    assert (code, json.loads(printed)["done_before"]) == (0, 0)
    assert [line["image"] for line in read_json_lines(out)] == [
        f"one/pictures/{number}.png" for number in range(6)
    ]


def test_a_run_goes_on_with_the_pictures_that_there_are_now(run, server, photographs, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, crop in enumerate(photographs[:6]):
        (folder / f"{number}.png").write_bytes(crop.path.read_bytes())
    mend = breaking(server, photographs[4].path)
    source = ("--address", server.address)
    command = (folder, "--ordered", "--out", tmp_path / "results.jsonl", "--in-flight", 1)
    assert run(*command, source=source)[0] == 1
    mend()
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes(photographs[9].path.read_bytes() + b"\0")
    code, printed, _ = run(*command, "--json", source=source)
    summary = json.loads(printed)
    # Of four that were done one is gone and one is another.
    assert (code, summary["done_before"], summary["classified"]) == (0, 2, 3)
    names = [Path(line["image"]).name for line in read_json_lines(tmp_path / "results.jsonl")]
    assert names == ["1.png", "2.png", "3.png", "4.png", "5.png"]


def test_a_model_that_is_unloaded_ends_the_run_and_keeps_the_journal(
    run, server, photographs, tmp_path
):
    answer, asked = server.service.classify, []

    def unload_after_five(request):
        asked.append(request)
        if len(asked) > 5:
            message = "version 3 of the model 'pets' is unloaded"
            raise StatusError(
                ErrorStatus(code=FAILED_PRECONDITION, reason="MODEL_NOT_READY", message=message)
            )
        return answer(request)

    server.service.classify = unload_after_five
    out = tmp_path / "results.jsonl"
    paths = [crop.path for crop in photographs[:20]]
    command = (*paths, "--out", out, "--in-flight", 2, "--json")
    source = ("--address", server.address)
    code, printed, err = run(*command, source=source)
    assert (code, printed) == (1, "")
    assert err == (
        "foveate batch: version 3 of the model 'pets' is unloaded; "
        "what was done is kept; the same command goes on from there\n"
    )
    assert not out.exists()
    server.service.classify = answer
    code, printed, _ = run(*command, source=source)
    summary = json.loads(printed)
    assert (code, summary["done_before"], summary["classified"]) == (0, 5, 15)
    assert len(read_json_lines(out)) == 20


def test_a_picture_above_the_servers_limit_fails_alone(
    run, repository, photographs, tmp_path, capsys
):
    large = tmp_path / "large.bmp"
    Image.new("RGB", (400, 400), (200, 10, 10)).save(large)
    paths = [photographs[0].path, large, photographs[1].path]
    out = tmp_path / "results.jsonl"
    with served(repository, "--max-message-bytes", "100000") as address:
        source = ("--address", address)
        assert run(*paths, "--out", out, "--patience", LIMIT_SECONDS, source=source)[0] == 1
        capsys.readouterr()
        assert classify.main([*map(str, paths), "--address", address, "--json"]) == 1
    assert len(read_json_lines(out)) == 2
    (error,) = read_json_lines(tmp_path / "results.jsonl.errors.jsonl")
    assert error["image"] == str(large)
    assert (error["code"], error["reason"]) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    assert error["message"].endswith("bytes; the limit is 100000 bytes")
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["error"], third["error"]) == (None, None)
    assert second["error"]["reason"] == "MESSAGE_TOO_LARGE"


def test_a_folder_that_cannot_be_read_has_an_error_of_its_own(
    run, photographs, tmp_path, monkeypatch
):
    folder = tmp_path / "pictures"
    (folder / "lost+found").mkdir(parents=True)
    (folder / "a.png").write_bytes(photographs[0].path.read_bytes())
    scan, denied = os.scandir, [str(folder / "lost+found")]

    def refuse(place):
        if os.fspath(place) in denied:
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    out = tmp_path / "results.jsonl"
    assert run(folder, "--out", out)[0] == 1
    assert len(read_json_lines(out)) == 1
    (error,) = read_json_lines(tmp_path / "results.jsonl.errors.jsonl")
    assert error == {
        "image": denied[0],
        "code": "PERMISSION_DENIED",
        "reason": "FOLDER_UNREADABLE",
        "message": f"cannot read {denied[0]}: Permission denied",
    }
    denied.clear()
    assert run(folder, "--out", out, "--retry-errors")[0] == 0


def test_a_name_too_long_for_its_overlay_fails_alone(run, photographs, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", f"{'x' * 246}.png"):
        (folder / name).write_bytes(photographs[0].path.read_bytes())
    out = tmp_path / "results.jsonl"
    assert run(folder, "--out", out, "--cam", tmp_path / "cams")[0] == 1
    assert [Path(line["image"]).name for line in read_json_lines(out)] == ["a.png"]
    (error,) = read_json_lines(tmp_path / "results.jsonl.errors.jsonl")
    assert error["message"] == "cannot write its overlay: File name too long"


def test_what_is_passed_over_is_counted_and_named(run, photographs, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "._a.png", ".thumb.png", "notes.txt"):
        (folder / name).write_bytes(photographs[0].path.read_bytes())
    code, printed, _ = run(folder, "--out", tmp_path / "results.csv")
    assert code == 0
    told = " ".join(printed.split())
    assert "passed over 2 hidden (the first is" in told
    assert "1 .txt (the first is" in told
    arguments = (folder, "--out", tmp_path / "results.csv", "--overwrite", "--json")
    assert json.loads(run(*arguments)[1])["passed_over"] == {"hidden": 2, ".txt": 1}
    summary = json.loads(run(*arguments, "--hidden")[1])
    assert (summary["results"], summary["passed_over"]) == (3, {".txt": 1})


def test_no_picture_at_all_is_told_and_leaves_nothing(run, photographs, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    out = tmp_path / "results.csv"
    code, printed, err = run(folder, "--out", out)
    assert (code, printed, err) == (1, "", f"foveate batch: there is no picture in {folder}\n")
    (folder / ".a.png").write_bytes(photographs[0].path.read_bytes())
    code, _, err = run(folder, "--out", out)
    assert code == 1
    assert f"; passed over: 1 hidden (the first is {folder}/.a.png)" in err
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_pictures_that_are_away_cost_no_results_of_an_earlier_run(
    run, server, photographs, tmp_path
):
    folder = tmp_path / "mount"
    folder.mkdir()
    for number, crop in enumerate(photographs[:6]):
        (folder / f"{number}.png").write_bytes(crop.path.read_bytes())
    mend = breaking(server, photographs[4].path)
    source = ("--address", server.address)
    command = (folder, "--ordered", "--out", tmp_path / "results.jsonl", "--in-flight", 1)
    assert run(*command, source=source)[0] == 1
    mend()
    folder.rename(tmp_path / "away")
    folder.mkdir()
    assert run(*command, source=source)[0] == 1
    folder.rmdir()
    (tmp_path / "away").rename(folder)
    code, printed, _ = run(*command, "--json", source=source)
    assert (code, json.loads(printed)["done_before"]) == (0, 4)


def test_a_server_gives_what_this_process_gives(run, folder, served_colours, tmp_path):
    options = ("--ordered", "--embeddings", "last", "--feature-maps", "planes")
    local, remote = tmp_path / "local.parquet", tmp_path / "remote.parquet"
    assert run(folder, "--out", local, *options)[0] == 0
    source = ("--address", served_colours)
    assert run(folder, "--out", remote, *options, source=source)[0] == 0
    assert pq.read_table(remote).equals(pq.read_table(local))


def test_a_run_over_grpc_goes_on_where_the_server_broke(run, server, photographs, tmp_path):
    mend = breaking(server, photographs[5].path)
    source = ("--address", server.address)
    paths = [crop.path for crop in photographs[:10]]
    out = tmp_path / "results.jsonl"
    code, _, err = run(*paths, "--out", out, "--in-flight", 1, "--top-k", 1, source=source)
    assert code == 1
    assert "foveate batch: " in err
    assert not out.exists()
    mend()
    again = (*paths, "--out", out, "--json")
    code, _, err = run(*again, source=source)
    assert code == 1
    assert "a run with --top-k 1, not 5" in err
    code, printed, _ = run(*again, "--top-k", 1, source=source)
    assert code == 0
    summary = json.loads(printed)
    assert (summary["done_before"], summary["classified"]) == (5, 5)
    assert [line["image"] for line in read_json_lines(out)] == [str(path) for path in paths]


def test_an_error_of_the_server_belongs_to_its_picture(run, server, photographs, tmp_path):
    answer = server.service.classify

    def classify(request):
        if request.encoded == photographs[1].path.read_bytes():
            raise StatusError(ErrorStatus(code=INVALID_ARGUMENT, reason="ODD", message="odd"))
        return answer(request)

    server.service.classify = classify
    out = tmp_path / "results.jsonl"
    paths = [crop.path for crop in photographs[:3]]
    assert run(*paths, "--out", out, source=("--address", server.address))[0] == 1
    assert len(read_json_lines(out)) == 2
    assert read_json_lines(tmp_path / "results.jsonl.errors.jsonl") == [
        {"image": str(paths[1]), "code": "INVALID_ARGUMENT", "reason": "ODD", "message": "odd"}
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.xlsx"], "--out must end in .parquet, .csv, .jsonl, not a.xlsx"),
        (["--out", "a.csv", "--embeddings", "last"], "a CSV file holds no arrays"),
        (["--out", "a.csv", "--cam-method", "cam"], "--cam-method needs --cam"),
        (["--out", "a.csv", "--in-flight", "0"], "must be at least 1, not 0"),
        (["--out", "a.csv", "--patience", "-1"], "must not be below 0 seconds, not -1"),
        (["-", "-", "--out", "a.csv"], "standard input can be read only once"),
        (["--out", "a.csv", "--cam", "{folder}/cams"], "whose pictures are read"),
        (["--out", "a.csv", "--cam", __file__], "test_command.py is no folder"),
    ],
)
def test_wrong_usage_is_told(run, folder, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        run(folder, *(argument.format(folder=folder) for argument in arguments))
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_table_takes_the_place_of_no_folder(run, photographs, tmp_path, capsys):
    (tmp_path / "made.csv").mkdir()
    with pytest.raises(SystemExit, match="2"):
        run(photographs[0].path, "--out", tmp_path / "made.csv")
    assert "made.csv is a folder" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-k", 4], "--top-k is 4; the limit is 1 to 3, the number of classes"),
        (["--feature-maps", "x"], "--feature-maps: the model has no layer 'x'; it has planes"),
        (["--cam", "cams", "--cam-method", "x"], "no CAM method 'x'; it has cam"),
        (["--model", "x"], "no model 'x'"),
        (["--labels", "missing.csv"], "missing.csv: cannot be read"),
    ],
)
def test_what_the_model_does_not_have_is_told(run, folder, tmp_path, arguments, message):
    code, _, err = run(folder, "--out", tmp_path / "results.jsonl", *arguments)
    assert code == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_the_pip_line_is_told_before_the_work(run, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = run(folder, "--out", tmp_path / "results.parquet")
    assert code == 1
    assert f"pip install '{arrow.REQUIREMENT}'" in err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_without_a_traceback(run, folder, tmp_path, monkeypatch):
    def full(self):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr("foveate_client.batch.journal.Journal.commit", full)
    code, _, err = run(folder, "--out", tmp_path / "results.csv")
    assert code == 1
    assert err == (f"foveate batch: {tmp_path / 'results.csv.journal'}: No space left on device\n")


def test_ctrl_c_keeps_what_was_done(server, photographs, tmp_path):
    answered = threading.Semaphore(0)
    gate = threading.Event()
    answer = server.service.classify

    def classify(request):
        if request.encoded == photographs[5].path.read_bytes():
            answered.release()
            gate.wait(2 * LIMIT_SECONDS)
        return answer(request)

    server.service.classify = classify
    paths = [str(crop.path) for crop in photographs[:10]]
    out = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "foveate_client", "batch", *paths, "--out", str(out), "--json"]
    command += ["--address", server.address, "--in-flight", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert answered.acquire(timeout=LIMIT_SECONDS)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_SECONDS)
    gate.set()
    assert process.returncode == 130
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    again = subprocess.run(command, check=True, capture_output=True)
    summary = json.loads(again.stdout)
    assert (summary["done_before"], summary["classified"]) == (5, 5)


def test_a_terminal_sees_progress(repository, folder, tmp_path):
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "foveate_client", "batch", folder, "--repository", repository]
    with subprocess.Popen(
        [*command, "--out", tmp_path / "results.csv"],
        stderr=terminal,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "120", "TERM": "xterm"},
    ) as process:
        os.close(terminal)
        seen = b""
        try:
            while chunk := os.read(main, 4096):
                seen += chunk
        except OSError:  # the end of a terminal
            pass
        finally:
            os.close(main)
    assert process.returncode == 0
    assert b"60/60" in seen
    assert b"images/s" in seen


def test_tables_say_what_made_them(run, folder, tmp_path):
    out = tmp_path / "results.parquet"
    assert run(folder, "--out", out, "--ordered", "--top-k", 2)[0] == 0
    held = json.loads(pq.read_schema(out).metadata[b"foveate"])
    assert held["foveate"] == version("foveate-client")
    assert (held["model"], held["version"], held["variant"]) == ("colours", "1", "fp32")
    assert (held["--top-k"], held["sources"]) == (2, [str(folder)])
    assert held["preprocessing"]["interpolation"] == "bilinear"
    table = tmp_path / "results.csv"
    assert run(folder, "--out", table, "--ordered", "--top-k", 2)[0] == 0
    beside = json.loads((tmp_path / "results.csv.json").read_text(encoding="utf-8"))
    assert beside == held


def test_tables_of_one_name_have_reports_and_errors_of_their_own(run, folder, broken, tmp_path):
    for suffix in ("csv", "parquet", "jsonl"):
        code, printed, _ = run(folder, broken, "--out", tmp_path / f"r.{suffix}", "--json")
        assert code == 1
        files = json.loads(printed)["files"]
        name = "r" if suffix == "csv" else f"r.{suffix}"
        assert files["report"] == str(tmp_path / f"{name}.report.html")
        assert files["errors"] == str(tmp_path / f"{name}.errors.jsonl")
    assert run(folder, "--out", tmp_path / "r.parquet", "--overwrite")[0] == 0
    assert len(read_json_lines(tmp_path / "r.errors.jsonl")) == 1


def test_integers_with_nulls_stay_integers(run, photographs, tmp_path):
    unknown = tmp_path / "unlabelled" / "a.png"
    unknown.parent.mkdir()
    unknown.write_bytes(photographs[0].path.read_bytes())
    out = tmp_path / "results.parquet"
    assert run(photographs[0].path, unknown, "--out", out)[0] == 0
    columns = json.loads(pq.read_schema(out).metadata[b"pandas"])["columns"]
    kinds = {column["name"]: column["numpy_type"] for column in columns}
    assert kinds == {
        "target": "Int32", "correct": "boolean", "class_1": "Int32", "class_2": "Int32",
        "class_3": "Int32",
    }  # fmt: skip
    assert pq.read_table(out).column("target").to_pylist() == [photographs[0].best, None]


def test_names_that_are_no_class_are_told(run, photographs, tmp_path):
    unknown = tmp_path / "n04960277" / "a.png"
    unknown.parent.mkdir()
    unknown.write_bytes(photographs[0].path.read_bytes())
    code, printed, _ = run(unknown.parent, "--out", tmp_path / "results.csv")
    assert code == 0
    assert "1 images lie under a name that is no class, such as n04960277; --labels" in printed


def test_what_was_read_is_what_was_classified_and_what_failed(run, photographs, broken, tmp_path):
    out = tmp_path / "results.csv"
    code, printed, _ = run(photographs[0].path, broken, "--out", out)
    assert code == 1
    lines = {line.split()[0]: line.split()[1] for line in printed.splitlines()}
    assert (lines["read"], lines["classified"], lines["failed"]) == ("2", "1", "1")
    summary = json.loads(
        run(photographs[0].path, broken, "--out", out, "--retry-errors", "--json")[1]
    )
    counts = [summary[name] for name in ("read", "classified", "failed", "done_before")]
    assert counts == [2, 0, 1, 1]


def test_a_model_of_few_classes_has_no_top_five(run, folder, tmp_path):
    printed = run(folder, "--out", tmp_path / "results.csv")[1]
    assert "top 1 100.0% of 60 labelled images" in printed
    assert "top 5" not in (tmp_path / "results.report.html").read_text(encoding="utf-8")


def test_progress_is_told_in_lines_where_there_is_no_terminal(run, folder, tmp_path, monkeypatch):
    assert run(folder, "--out", tmp_path / "quiet.csv")[2] == ""
    monkeypatch.setattr(batch, "PROGRESS_SECONDS", 0)
    lines = run(folder, "--out", tmp_path / "results.csv")[2].splitlines()
    assert len(lines) == 60
    assert lines[-1].startswith("foveate batch: 60 classified, ")
    assert lines[-1].endswith(" a second")


@pytest.mark.parametrize("options", [("--model", "unknown"), ("--top-k", "9")])
def test_a_run_that_cannot_begin_leaves_no_folder(run, photographs, tmp_path, options):
    out = tmp_path / "new" / "folder" / "results.csv"
    code, _, err = run(photographs[0].path, "--out", out, *options)
    assert (code, len(err.splitlines())) == (1, 1)
    assert not (tmp_path / "new").exists()


def test_a_picture_that_changes_under_way_fails_alone(run, photographs, tmp_path, monkeypatch):
    first, second = (tmp_path / name for name in ("a.png", "b.png"))
    for path in (first, second):
        path.write_bytes(photographs[0].path.read_bytes())
    overlay = Heatmap.overlay

    def changed(heatmap, image, **options):
        if Path(image) == first:
            Image.new("RGB", (3, 5)).save(first)
        return overlay(heatmap, image, **options)

    monkeypatch.setattr(Heatmap, "overlay", changed)
    out = tmp_path / "results.csv"
    assert run(first, second, "--out", out, "--cam", tmp_path / "cams")[0] == 1
    (error,) = read_json_lines(tmp_path / "results.errors.jsonl")
    assert (error["image"], error["message"]) == (
        str(first),
        "it was changed while it was classified",
    )


def test_a_picture_whose_overlay_takes_too_much_memory_keeps_its_row(run, tmp_path):
    source, out = tmp_path / "large.jpg", tmp_path / "results.jsonl"
    large = Image.new("RGB", (6400, 5300), (200, 10, 10))
    large.save(source, progressive=True, subsampling=0)
    code, told, _ = run(source, "--out", out, "--cam", tmp_path / "cams")
    assert code == 0
    (line,) = read_json_lines(out)
    assert line["class_1"] is not None
    assert line["cam"] is None
    assert not list((tmp_path / "cams").rglob("*.jpg"))
    assert "without an overlay: decoding takes too much memory" in told


def test_the_overlay_of_a_large_picture_is_reduced(run, tmp_path):
    source = tmp_path / "large.jpg"
    turned = Image.new("RGB", (5000, 3001), (200, 10, 10))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(source, exif=exif)
    out = tmp_path / "results.jsonl"
    assert run(source, "--out", out, "--cam", tmp_path / "cams")[0] == 0
    (line,) = read_json_lines(out)
    with Image.open(line["cam"]) as overlay:
        assert max(overlay.size) <= rows.LARGEST_OVERLAY
        assert overlay.height / overlay.width == pytest.approx(5000 / 3001, rel=0.01)
