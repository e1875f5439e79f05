import json
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from foveate.v1 import classifier_service_pb2 as service
from foveate.v1 import model_pb2 as models
from foveate_client import Model, _plugins
from foveate_client.commands import models as command

from .conftest import PETS


@pytest.fixture
def run(server, capsys):
    def run(*arguments):
        code = command.main([*arguments, "--address", server.address])
        return code, *capsys.readouterr()

    server.service.pages[""] = service.ListModelsResponse(
        models=[
            models.ModelSummary(
                name="pets",
                versions=[
                    models.ModelVersion(
                        version="4", state=models.MODEL_STATE_FAILED, reason="a digest differs"
                    ),
                    models.ModelVersion(version="3", state=models.MODEL_STATE_READY),
                ],
                default_version="3",
                version_labels={"stable": "3"},
            )
        ]
    )
    return run


def test_the_models_are_listed(run):
    code, out, _ = run()
    header, failed, ready = (line.split() for line in out.splitlines())
    assert code == 0
    assert header == ["model", "version", "state"]
    assert failed == ["pets", "4", "failed", "a", "digest", "differs"]
    assert ready == ["pets", "3", "ready", "default,", "stable"]


def test_the_models_are_listed_for_programs(run):
    code, out, _ = run("--json")
    assert code == 0
    assert json.loads(out) == [
        {
            "name": "pets",
            "versions": [
                {"version": "4", "state": "failed", "reason": "a digest differs"},
                {"version": "3", "state": "ready", "reason": ""},
            ],
            "default_version": "3",
            "version_labels": {"stable": "3"},
        }
    ]


def test_one_model_is_described(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run("pets")
    assert code == 0
    for fact in (
        "timm:resnet50, 25,557,032 parameters, 6 classes",
        "224 x 224 x 3",
        "crop: the shorter side to 256 (bicubic), then the centre",
        "onnxruntime, cpu, fp32",
        "2025-03-01 12:00 UTC",
        "top 1 91.0%, top 5 99.0% (500 images of pets-test)",
        "not measured",
        "40 x 28 x 28",
    ):
        assert fact in out


def test_what_was_assumed_is_shown(server, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = run("pets")
    assert ["scores", "softmax"] in [line.split() for line in out.splitlines()]
    model = server.service.model
    model.scores = "sigmoid"
    model.assumptions["scores"] = "sigmoid, taken off the end of the network"
    _, out, _ = run("pets")
    assert "sigmoid, taken off the end of the network" in out
    _, out, _ = run("pets", "--json")
    described = json.loads(out)
    assert described["scores"] == "sigmoid"
    assert described["assumptions"] == {"scores": "sigmoid, taken off the end of the network"}


def test_a_model_without_maps_shows_why_and_no_empty_table(server, run):
    _, out, _ = run("pets")
    assert "cam method" in out
    del server.service.model.cam_methods[:]
    server.service.model.assumptions["cams"] = "no class activation maps: sort has no rule"
    _, out, _ = run("pets")
    assert "no class activation maps: sort has no rule" in out
    assert "cam method" not in out


def test_a_repository_that_is_not_there_is_named(capsys, tmp_path):
    pytest.importorskip("foveate_serve")
    missing = tmp_path / "models"
    assert command.main(["pets", "--repository", str(missing)]) == 1
    said = capsys.readouterr()
    assert said.err == f"foveate models: cannot read {missing}: No such file or directory\n"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"fit": "squash", "resize": 224}, "squash: both sides to 224 x 224 (bicubic)"),
        (
            {"fit": "squash", "width": 448, "resize": 256},
            "squash: both sides to 256 x 512 (bicubic), then the centre",
        ),
        (
            {"fit": "pad", "resize": 224, "fill": (0.5, 0.25, 0)},
            "pad: into 224 x 224 (bicubic); border (0.5, 0.25, 0)",
        ),
    ],
)
def test_the_fit_is_told(fields, told):
    spec = Model.from_message(PETS).input
    assert (spec.fit, spec.fill) == ("crop", ())  # a server of before says nothing of it
    assert command._fit(replace(spec, **fields)) == told


def test_one_model_is_described_for_programs(run):
    code, out, _ = run("pets", "--json")
    described = json.loads(out)
    assert code == 0
    assert described["labels"][1] == "tiger cat"
    assert described["created"] == "2025-03-01T12:00:00+00:00"
    assert described["variants"][0]["accuracy"]["top1"] == 0.91
    assert described["variants"][1]["accuracy"] is None


def test_a_call_that_fails_is_told(server, run):
    server.stop().wait()
    code, out, err = run()
    assert (code, out) == (1, "")
    assert err.startswith("foveate models: ")


LENET = {
    "name": "foveate:lenet5",
    "parameters": 61_706,
    "operations": 416_520,
    "input_size": 28,
    "top1": None,
    "top5": None,
    "weights": None,
}


@pytest.fixture
def catalogue(monkeypatch):
    point = EntryPoint(name="available", group="foveate.catalogues", value="unused:unused")
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda: [LENET])
    monkeypatch.setattr(
        _plugins, "entry_points", lambda group, name: [point] if group == point.group else []
    )


def test_what_can_be_exported_comes_from_the_catalogue(catalogue, capsys):
    assert command.main(["--available", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [LENET]
    assert command.main(["--available"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == ["foveate:lenet5", "61,706", "416,520", "28", "x", "28"]


def test_a_pipe_gets_whole_lines(catalogue, capsys, monkeypatch):
    name = "timm:" + "x" * 120
    monkeypatch.setitem(LENET, "name", name)
    monkeypatch.setitem(LENET, "top1", 74.846)
    assert command.main(["--available"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("timm:")]
    assert line.split() == [name, "61,706", "416,520", "28", "x", "28", "74.8", "%"]


def test_a_classifier_is_drawn_by_the_distribution_that_has_it(monkeypatch, capsys):
    point = EntryPoint(name="graph", group="foveate.catalogues", value="unused:unused")
    drawn = []
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda *asked: drawn.append(asked) or 3)
    monkeypatch.setattr(
        _plugins,
        "entry_points",
        lambda group, name: [point] if (group, name) == (point.group, point.name) else [],
    )
    assert command.main(["foveate:lenet5", "--graph", "lenet5.svg"]) == 3
    assert drawn == [("foveate:lenet5", "lenet5.svg")]
    for wrong in (["--available"], ["--address", "127.0.0.1:1"], ["--repository", "models"]):
        with pytest.raises(SystemExit) as stop:
            command.main(["foveate:lenet5", "--graph", "lenet5.svg", *wrong])
        assert stop.value.code == 2
    assert "--graph draws the classifier NAME" in capsys.readouterr().err
    monkeypatch.setattr(_plugins, "entry_points", lambda group, name: [])
    assert command.main(["foveate:lenet5", "--graph", "lenet5.svg"]) == 1
    assert "foveate-train[graphs]" in capsys.readouterr().err


def test_without_a_catalogue_the_pip_line_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(_plugins, "entry_points", lambda group, name: [])
    assert command.main(["--available"]) == 1
    assert "pip install foveate-train" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--available", "--address", "localhost:1"],
        ["--available", "pets"],
        ["--address", "localhost:1", "--repository", "models"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
