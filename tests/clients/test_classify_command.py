import io
import json
import os
import signal
import subprocess
import sys
import threading
import types

import grpc
import numpy as np
import pytest
from PIL import Image

from foveate.status import ErrorStatus, FieldViolation, StatusError
from foveate_client.commands import classify

from ..waiting import LIMIT_SECONDS
from .conftest import answer, stream_answer

INVALID_ARGUMENT = 3


@pytest.fixture
def run(server, capsys):
    """Run `foveate classify` against the server; return its code, stdout and stderr."""

    def run(*arguments):
        code = classify.main([*map(str, arguments), "--address", server.address])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refusing(server):
    """The server, refusing every picture below 100 pixels."""
    answer = server.service.classify

    def classify(request):
        response = answer(request)
        if response.view.source_width < 100:
            violation = FieldViolation(field="encoded", description="must be 100 pixels wide")
            raise StatusError(
                ErrorStatus(
                    code=INVALID_ARGUMENT,
                    reason="IMAGE_TOO_SMALL",
                    message="the picture is too small",
                    field_violations=(violation,),
                )
            )
        return response

    server.service.classify = classify


@pytest.fixture
def tiny(coffee, tmp_path):
    path = tmp_path / "tiny.png"
    with Image.open(coffee) as image:
        image.resize((60, 40)).save(path)
    return path


def test_json_is_one_object_a_line_in_the_order_of_the_pictures(refusing, run, coffee, tiny):
    missing = tiny.with_name("missing.png")
    code, out, err = run(
        coffee, tiny, missing, coffee, "--json", "--top-k", 2, "--cam", "--feature-maps", "layer.1"
    )
    assert (code, err) == (1, "")
    first, small, unread, last = map(json.loads, out.splitlines())
    assert (
        first
        == last
        == {
            "image": str(coffee),
            "model": "pets",
            "version": "3",
            "scores": "softmax",
            "predictions": [
                {
                    "class_id": class_id,
                    "label": label,
                    "score": pytest.approx(score, abs=1e-4),
                    "confidence": None,
                }
                for class_id, label, score in (
                    (1, "tiger cat", 0.6337),
                    (2, "Egyptian cat", 0.2331),
                )
            ],
            "trust": None,
            "cams": [
                {
                    "class_id": 1,
                    "label": "tiger cat",
                    "against": None,
                    "method": "cam",
                    "height": 7,
                    "width": 7,
                    "minimum": -8,
                    "maximum": 40,
                    "explained": None,
                    "path": None,
                }
            ],
            "feature_maps": [
                {"layer": "layer.1", "channels": 3, "height": 7, "width": 7, "path": None}
            ],
            "error": None,
        }
    )
    nothing = {"model": None, "version": None, "scores": None}
    nothing |= {"predictions": [], "trust": None, "cams": [], "feature_maps": []}
    assert small == nothing | {
        "image": str(tiny),
        "error": {
            "code": "INVALID_ARGUMENT",
            "reason": "IMAGE_TOO_SMALL",
            "message": "the picture is too small; encoded: must be 100 pixels wide",
        },
    }
    assert unread == nothing | {
        "image": str(missing),
        "error": {
            "code": "INVALID_ARGUMENT",
            "reason": "IMAGE_UNREADABLE",
            "message": f"cannot read {missing}: No such file or directory",
        },
    }


def test_what_is_asked_for_is_what_the_arguments_say(server, run, coffee):
    asked = []
    answer = server.service.classify

    def classify(request):
        asked.append(request)
        return answer(request)

    server.service.classify = classify
    run(coffee)
    run(coffee, "--model", "dogs", "--version", "2", "--cam-top", 3, "--classes", "4,0")
    run(coffee, "--cam-method", "gradcam", "--channels", "2,9", "--feature-maps", "layer.1",
        "--feature-maps", "layer.2")  # fmt: skip
    plain, explained, mapped = asked
    assert not plain.HasField("cam")
    assert not plain.HasField("top_k")
    assert (explained.model, explained.version) == ("dogs", "2")
    assert (explained.cam.top, list(explained.cam.class_ids)) == (3, [4, 0])
    assert mapped.cam.method == "gradcam"
    assert not mapped.cam.HasField("top")
    assert [(x.layer, list(x.channels)) for x in mapped.feature_maps] == [
        ("layer.1", [2, 9]),
        ("layer.2", [2, 9]),
    ]


def test_a_model_without_maps_is_said_once_and_classifies_all_the_same(run, server, coffee):
    del server.service.model.cam_methods[:]
    server.service.model.assumptions["cams"] = "no class activation maps: sort has no rule"
    code, out, err = run(coffee, coffee, "--json", "--cam", "--cam-method", "gradcam")
    assert code == 0
    assert err.count("pets has no class activation maps: sort has no rule. The classes") == 1
    assert "--cam-layer" in err
    records = [json.loads(line) for line in out.splitlines()]
    assert all(record["predictions"] and record["error"] is None for record in records)
    assert all(record["cams"] == [] for record in records)
    assert len(records) == 2


def test_pictures_are_written_beside_their_values(run, coffee, chelsea, tmp_path):
    out = tmp_path / "new" / "folder"
    again = tmp_path / "coffee.jpg"
    with Image.open(coffee) as image:
        image.save(again)
    code, text, _ = run(
        coffee, again, chelsea, "--json", "--out", out, "--cam-top", 2, "--feature-maps", "a/b.1"
    )
    assert code == 0
    records = [json.loads(line) for line in text.splitlines()]
    names = [
        [os.path.relpath(x["path"], out) for x in (*r["cams"], *r["feature_maps"])] for r in records
    ]
    assert names == [
        [f"{stem}.cam.1.png", f"{stem}.cam.2.png", f"{stem}.features.a_b.1.png"]
        for stem in ("coffee", "coffee-2", "chelsea")
    ]
    assert np.load(out / "coffee.cam.1.npy").shape == (7, 7)
    assert np.load(out / "coffee.cam.1.npy").max() == 40
    assert np.load(out / "coffee.features.a_b.1.npy").shape == (3, 7, 7)
    with Image.open(out / "coffee.cam.1.heatmap.png") as heatmap:
        assert heatmap.size == (400, 400)
    with Image.open(out / "coffee.cam.1.png") as picture:
        both = np.asarray(picture.convert("RGB")).astype(int)
    height = 480
    left, right = both[-20 - height : -20, 20:740], both[-20 - height : -20, 752:1472]
    assert both.shape[1] == 1492
    # The middle square was seen; the map's first row has no evidence, its last cell the most.
    changed = np.abs(left - right).sum(axis=2)
    assert changed[-60:-5, 530:595].mean() > 50
    inside_the_frame = changed[5:25, 130:590]
    assert inside_the_frame.max() == 0
    assert changed[:, :110].max() == 0
    assert changed[:, 610:].max() == 0


def test_people_get_a_table_with_bars(run, coffee):
    code, out, err = run(coffee, "--cam-top", 4)
    assert (code, err) == (0, "")
    assert f"{coffee}\n" in out
    assert "pets, version 3" in out
    bars = [line.count("█") for line in out.splitlines() if "%" in line]
    assert len(bars) == 5
    assert bars == sorted(bars, reverse=True)
    assert bars[0] == int(32 * 0.6337)
    assert "tiger cat: values -8 to 40, the largest at x 471, y 371" in out
    assert "lynx: no positive evidence" in out


def test_paths_stand_whole_in_a_narrow_terminal(run, coffee, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    _, out, _ = run(coffee, "--cam", "--out", tmp_path)
    assert f"{coffee}\n" in out
    assert f"    {tmp_path / 'coffee.cam.1.png'}\n" in out


def test_people_are_told_of_errors_apart_from_the_results(refusing, run, coffee, tiny):
    code, out, err = run(tiny, coffee)
    assert code == 1
    assert "tiger cat" in out
    assert err == (
        f"foveate classify: {tiny}: the picture is too small; encoded: must be 100 pixels wide\n"
    )


def test_a_hyphen_reads_standard_input(run, coffee, tmp_path, monkeypatch):
    stdin = types.SimpleNamespace(buffer=io.BytesIO(coffee.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    code, out, _ = run("-", "--json", "--cam", "--out", tmp_path)
    record = json.loads(out)
    assert (code, record["image"]) == (0, "-")
    assert record["cams"][0]["path"] == str(tmp_path / "stdin.cam.1.png")


def test_when_the_stream_breaks_every_picture_left_says_so(server, run, coffee):
    def classify_stream(requests, context):
        context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    server.service.classify_stream = classify_stream
    code, out, _ = run(coffee, coffee, "--json")
    assert code == 1
    assert [json.loads(line)["error"]["code"] for line in out.splitlines()] == ["UNAVAILABLE"] * 2


def test_a_folder_that_cannot_be_made_is_a_failure(run, coffee, tmp_path):
    code, _, err = run(coffee, "--out", coffee / "below-a-file")
    assert code == 1
    assert "below-a-file" in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-", "-"], "only once"),
        (["cat.jpg", "--channels", "1"], "needs --feature-maps"),
        (["cat.jpg", "--timeout", "0"], "above 0 seconds"),
        (["cat.jpg", "--classes", "cat"], "--classes"),
        (["cat.jpg", "--repository", "models"], "not allowed with"),
    ],
)
def test_wrong_usage_is_told_and_exits_with_2(run, capsys, arguments, complaint):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_source_is_needed(capsys):
    with pytest.raises(SystemExit) as caught:
        classify.main(["cat.jpg"])
    assert caught.value.code == 2
    assert "--address --repository" in capsys.readouterr().err


def test_the_installed_command_classifies(server, coffee):
    done = subprocess.run(
        [sys.executable, "-m", "foveate_client", "classify", coffee, "--address", server.address],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "tiger cat" in done.stdout


def test_ctrl_c_during_a_call_leaves_no_traceback(server, coffee):
    ended = threading.Event()

    def classify_stream(requests, context):
        context.add_callback(ended.set)
        yield stream_answer(next(requests), answer)
        ended.wait()

    server.service.classify_stream = classify_stream
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "foveate_client", "classify", coffee, coffee),
            *("--json", "--address", server.address),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        # The first picture's line shows that the client waits for the second answer.
        assert "tiger cat" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_SECONDS)
    assert (process.returncode, err) == (130, "foveate: interrupted\n")
    assert ended.wait(LIMIT_SECONDS)


@pytest.fixture
def scored(server):
    """Make the server answer with scores of a kind; return what it is asked."""
    answer = server.service.classify
    asked = []

    def tell(kind):
        def classify(request):
            asked.append(request)
            response = answer(request)
            response.scores = kind
            for prediction in response.predictions:
                prediction.score = {"sigmoid": 0.9, "none": prediction.logit}[kind]
            if request.HasField("threshold"):
                kept = [p for p in response.predictions if p.score >= request.threshold]
                del response.predictions[:]
                response.predictions.extend(kept)
            return response

        server.service.classify = classify
        return asked

    return tell


def test_logits_are_no_percentages(run, coffee, scored):
    scored("none")
    _, out, _ = run(coffee, "--top-k", 2)
    lines = out.splitlines()
    assert lines[1].endswith("version 3; scores are logits")
    assert [" ".join(line.split()) for line in lines[2:4]] == ["tiger cat 4", "Egyptian cat 3"]
    _, out, _ = run(coffee, "--json")
    record = json.loads(out)
    assert record["scores"] == "none"
    assert record["predictions"][0]["score"] == 4


def test_labels_by_themselves_are_said_to_be_so(run, coffee, scored):
    scored("sigmoid")
    _, out, _ = run(coffee, "--top-k", 2)
    assert out.splitlines()[1].endswith("version 3; each label has a score by itself")
    assert out.count("90.0%") == 2


def test_a_threshold_is_asked_of_the_server(run, coffee, scored):
    asked = scored("none")
    _, out, _ = run(coffee, "--threshold", "2.5", "--json")
    assert [p["label"] for p in json.loads(out)["predictions"]] == ["tiger cat", "Egyptian cat"]
    assert asked[-1].threshold == 2.5
    assert not asked[-1].HasField("top_k")
    code, out, _ = run(coffee, "--threshold", "9")
    assert code == 0
    assert "no score reaches the threshold" in out
    with pytest.raises(SystemExit) as caught:
        run(coffee, "--threshold", "many")
    assert caught.value.code == 2
