"""`foveate bench`, run for real on a small bundle."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foveate_bench import command, loadgen
from foveate_bench.document import Report


@pytest.fixture
def repository(golden_bundle: Path) -> Path:
    return golden_bundle.parents[1]


def arguments(repository: Path, out: Path, *more: str | Path) -> list[str]:
    fixed = ["--repository", repository, "--model", "colours", "--out", out, "--threads", "1"]
    quick = ["--backend", "onnxruntime", "--rounds", "2", "--seconds", "0", "--no-roofline"]
    return [str(argument) for argument in (*fixed, *quick, *more)]


def test_a_run_leaves_a_report(
    repository: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    wanted = ["--batch", "2,1", "--outputs", "cam,logits", "--data", labelled, "--profile"]
    code = command.main(arguments(repository, out, *wanted, "--objective", "throughput"))
    assert code == command.DONE
    assert {file.name for file in out.iterdir()} == {
        "README.md",
        "accuracy.png",
        "latency.png",
        "profile.toml",
        "report.html",
        "results.json",
        "throughput.png",
    }
    report = Report.read(out / "results.json")
    assert report.complete
    assert len(report.measurements) == 4
    assert len(report.ties) == 4
    assert report.accuracies[0].top1 == 0.75
    assert report.models[0].pictures == "2 pictures of labelled"
    assert report.recommendation is not None
    (profile,) = report.operators
    assert profile.operators
    printed = capsys.readouterr().out
    assert "colours, logits, batch 2: onnxruntime fp32 (cpu, 1 thread)" in printed
    assert str(out / "report.html") in printed


def test_ctrl_c_keeps_what_was_measured_and_says_where(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    advance = command._Watching.advance
    calls = iter(range(100))

    def interrupting(self: command._Watching, amount: float) -> None:
        advance(self, amount)
        # One engine to load, and then the first turn of three.
        if next(calls) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(command._Watching, "advance", interrupting)
    more = ["--batch", "1", "--outputs", "logits", "--rounds", "3", "--json"]
    assert command.main(arguments(repository, out, *more)) == command.INTERRUPTED
    captured = capsys.readouterr()
    assert f"stopped; what was measured is in {out}" in captured.err
    report = Report.read(out / "results.json")
    assert json.loads(captured.out) == json.loads((out / "results.json").read_text("utf-8"))
    assert not report.complete
    assert [len(m.round_medians_ms) for m in report.measurements] == [1]
    assert "stopped before its last round" in (out / "README.md").read_text("utf-8")


def test_where_nothing_can_be_measured_the_command_fails_and_the_report_says_why(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    more = ["--batch", "1", "--outputs", "logits", "--device", "cuda:99"]
    assert command.main(arguments(repository, out, *more)) == command.FAILED
    assert "nothing could be measured" in capsys.readouterr().err
    (refusal,) = [r for r in Report.read(out / "results.json").refusals if "cuda:99" in r.what]
    assert "CUDAExecutionProvider" in refusal.reason


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        (["--model", "colors"], (2, "holds no model 'colors'; there are colours")),
        (["--backend", "abacus"], (1, "no backend 'abacus'")),
        (["--variant", "int8"], (1, "foveate export SOURCE")),
        (["--data", "nowhere"], (2, "nowhere: no such folder")),
        (["--device", "cpu", "--backend", "tensorrt_rtx"], (2, "it runs on cuda, not on cpu")),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    answer: tuple[int, str],
) -> None:
    code, message = answer
    out = tmp_path / "out"
    assert command.main(arguments(repository, out, *more)) == code
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch", "1,,2"], "'' in '1,,2' is no whole number of 1 to 1024"),
        (["--batch", "0"], "'0' in '0' is no whole number of 1 to 1024"),
        (["--batch", "2048"], "of 1 to 1024"),
        (["--batch", "eight"], "'eight' in 'eight'"),
        (["--outputs", "logits,heat"], "'heat' is none of the outputs logits, cam, features"),
        (["--variant", "fp32,"], "a name is missing between the commas"),
        (["--rounds", "0"], "0 is below 1"),
        (["--seconds", "-1"], "-1 is below 0"),
        (["--objective", "fun"], "none of p99=MILLISECONDS, throughput and memory"),
        (["--loadgen", "Sideways"], "'Sideways' is none of SingleStream"),
    ],
)
def test_bad_options_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments(tmp_path, tmp_path / "out", *more))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert more[0] in error
    assert message in error


def test_a_folder_that_cannot_be_written_is_named(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert command.main(arguments(repository, out)) == command.FAILED
    assert f"--out {out}: cannot be written (Not a directory)" in capsys.readouterr().err


def test_loadgen_that_is_missing_is_said_at_once(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loadgen, "find_spec", lambda _: None)
    assert (
        command.main(arguments(repository, tmp_path / "out", "--loadgen", "all")) == command.FAILED
    )
    assert 'pip install "foveate-bench[loadgen]"' in capsys.readouterr().err


def test_planning_and_measuring_import_no_engine() -> None:
    code = (
        "import sys, foveate_bench.command\n"
        "print([m for m in ('onnxruntime', 'openvino', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
