"""`foveate bench --recommend` with real engines, and the server that takes what it writes."""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from foveate_bench import command
from foveate_bench.document import Report
from foveate_runtime.backends.recommended import RECOMMENDED_FILE
from foveate_runtime.console import WRONG_USAGE

from ..conftest import FOVEATE


@pytest.fixture
def repository(golden_bundle: Path) -> Path:
    return golden_bundle.parents[1]


def recommend(repository: Path, *more: str | Path) -> int:
    quick = ["--recommend", "--rounds", "2", "--seconds", "0"]
    return command.main(list(map(str, ["--repository", repository, *quick, *more])))


def started(repository: Path, *flags: str) -> str:
    """Start a server in a process of its own, stop it once it serves; return its log."""
    arguments = ["serve", "--repository", repository, "--address", "127.0.0.1:0", *flags]
    with subprocess.Popen(
        [FOVEATE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        _, log = process.communicate(timeout=60)
    assert line.startswith("foveate serving 1 model"), log
    return log


def rewrite(repository: Path, old: str, new: str) -> None:
    file = repository / RECOMMENDED_FILE
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_a_server_takes_what_was_measured_here_and_nothing_else(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Today's rule takes ONNX Runtime for fp32, so that OpenVINO shows who decided.
    pytest.importorskip("openvino")
    assert recommend(repository, "--backend", "openvino") == command.DONE
    captured = capsys.readouterr()
    assert "recommended: colours fp32 on openvino, cpu" in captured.out
    assert str(repository / RECOMMENDED_FILE) in captured.err
    entry = tomllib.loads((repository / RECOMMENDED_FILE).read_text("utf-8"))["models"]["colours"]
    assert (entry["variant"], entry["backend"], entry["version"]) == ("fp32", "openvino", 1)

    log = started(repository)
    assert "fp32 on openvino, as recommended.toml says of this machine" in log
    assert "loaded the model colours, version 1, on openvino" in log

    log = started(repository, "--backend", "onnxruntime")
    assert "loaded the model colours, version 1, on onnxruntime" in log
    assert RECOMMENDED_FILE not in log

    rewrite(repository, 'variant = "fp32"', 'variant = "fp8"')
    log = started(repository)
    assert "cannot be loaded: no variant 'fp8'; the bundle has fp32; measure again with" in log
    assert "loaded the model colours, version 1, on onnxruntime" in log

    rewrite(repository, entry["engine"], "0.1")
    log = started(repository)
    assert "loaded the model colours, version 1, on onnxruntime" in log
    (line,) = [line for line in log.splitlines() if RECOMMENDED_FILE in line]
    assert f"the version of openvino was 0.1 and is {entry['engine']}" in line
    assert line.endswith("foveate bench --recommend --repository DIR --model colours")

    (repository / RECOMMENDED_FILE).write_text("[models", encoding="utf-8")
    log = started(repository, "--instances", "2")
    assert "loaded the model colours, version 1, on onnxruntime" in log
    assert log.count(RECOMMENDED_FILE) == 1
    assert "WARNING" in log


def test_every_installed_engine_and_variant_is_measured_but_those_that_compile(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recommend(repository, "--json") == command.DONE
    report = Report.model_validate_json(capsys.readouterr().out)
    measured = {m.case.backend for m in report.measurements}
    assert "onnxruntime" in measured
    assert "torch_compile" not in measured
    assert {(m.case.batch, m.case.outputs) for m in report.measurements} == {
        (1, "logits"),
        (8, "logits"),
    }
    assert report.roofline is None
    assert [path.name for path in repository.iterdir() if path.is_file()] == [RECOMMENDED_FILE]


def test_an_engine_whose_answers_are_wrong_is_not_chosen(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = repository / "colours/1/manifest.json"
    document = json.loads(manifest.read_text(encoding="utf-8"))
    # No engine computes the sum in the same order as another to the last bit of this.
    document["variants"][0]["tolerances"]["logits"] = 1e-30
    manifest.write_text(json.dumps(document), encoding="utf-8")
    assert recommend(repository, "--backend", "onnxruntime") == command.FAILED
    error = capsys.readouterr().err
    assert "logits: not the golden answers" in error
    assert "nothing can be recommended" in error


def test_the_accuracy_that_the_export_measured_decides_without_pictures(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = repository / "colours/1/manifest.json"
    document = json.loads(manifest.read_text(encoding="utf-8"))
    scored = {"data": "colours", "images": 100, "top1": 0.9, "top5": 1.0}
    full = document["variants"][0] | {"accuracy": scored}
    document["variants"] = [full, full | {"name": "fp16", "accuracy": scored | {"top1": 0.7}}]
    manifest.write_text(json.dumps(document), encoding="utf-8")
    more = ["--backend", "onnxruntime", "--variant", "fp16"]
    assert recommend(repository, *more) == command.FAILED
    assert "no variant is known to lose at most 1 point of top-1" in capsys.readouterr().err
    assert recommend(repository, *more, "--max-drop", "20") == command.DONE
    assert "its top-1 is 20.00 points below fp32's" in capsys.readouterr().out
    # Of other pictures the two say nothing of each other.
    document["variants"][1]["accuracy"] |= {"top1": 0.9, "images": 99}
    manifest.write_text(json.dumps(document), encoding="utf-8")
    assert recommend(repository, *more) == command.FAILED


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--recommend", "--device", "cpu", "cuda:0"], "--recommend is for one --device"),
        (["--recommend", "--loadgen", "Offline"], "--loadgen needs --out"),
        (["--model", "colours"], "--out must be given, or --recommend"),
        (["--out", "report"], "--model must be given, or --recommend"),
    ],
)
def test_options_that_do_not_go_together_are_named(
    repository: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert command.main(["--repository", str(repository), *more]) == WRONG_USAGE
    assert message in capsys.readouterr().err


def test_an_empty_repository_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recommend(tmp_path) == WRONG_USAGE
    assert "holds no model" in capsys.readouterr().err
