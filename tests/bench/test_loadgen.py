"""LoadGen asks the real engine and a real server, and its verdicts are passed on as they are."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from foveate_bench import command as bench
from foveate_bench import loadgen, peaks
from foveate_bench.document import Report
from foveate_bench.loadgen import (
    Job,
    LoadGenError,
    LoadGenResult,
    Outcome,
    Rules,
    Scenario,
    read_log,
    run,
)
from foveate_runtime.bundle.bundle import Bundle

from .conftest import measurement

CONFIGURATION = measurement((1.0,), threads=1).case.configuration
# No bound on time may decide here: a slow machine answers late.
EASY = Rules(seconds=0.0, samples_per_query=2, target_latency_ms=600_000.0)
IMAGES = np.arange(4 * 8 * 8 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 8, 8, 3)


def ask(
    bundle: Bundle,
    out: Path,
    *scenarios: Scenario,
    target: loadgen.Target = "engine",
    rules: Rules = EASY,
    images: np.ndarray = IMAGES,
) -> list[LoadGenResult]:
    return list(
        run(
            bundle,
            CONFIGURATION,
            images,
            scenarios=scenarios,
            rules=rules,
            out=out,
            targets=[target],
        )
    )


def test_the_engine_is_asked_in_the_process(colours: Bundle, tmp_path: Path) -> None:
    single, offline = ask(colours, tmp_path, Scenario.SINGLE_STREAM, Scenario.OFFLINE)
    assert (single.scenario, single.target) == (Scenario.SINGLE_STREAM, "engine")
    assert (single.valid, single.reasons, single.failures) == (True, (), 0)
    assert single.queries == loadgen.MIN_QUERIES[Scenario.SINGLE_STREAM]
    assert single.unit == "ms"
    assert single.value == single.p90_ms
    assert 0 < single.p50_ms <= single.p90_ms <= single.p99_ms
    assert single.target_qps is None
    assert single.version.startswith(version("mlcommons-loadgen"))
    assert (offline.valid, offline.queries, offline.unit) == (True, 1, "pictures/s")
    assert offline.value > 0
    # LoadGen's own files are kept, its summary for people to read among them.
    summary = (tmp_path / single.log / "mlperf_log_summary.txt").read_text("utf-8")
    assert "Scenario : SingleStream" in summary
    assert "Result is : VALID" in summary


def test_a_server_is_asked_over_the_network(colours: Bundle, tmp_path: Path) -> None:
    multi, server = ask(colours, tmp_path, Scenario.MULTI_STREAM, Scenario.SERVER, target="server")
    assert (multi.valid, multi.reasons, multi.failures) == (True, (), 0)
    assert multi.queries == loadgen.MIN_QUERIES[Scenario.MULTI_STREAM]
    assert multi.value == multi.p99_ms
    assert (server.valid, server.reasons, server.failures) == (True, (), 0)
    assert server.queries >= loadgen.MIN_QUERIES[Scenario.SERVER]
    assert server.target_latency_ms == EASY.target_latency_ms
    assert server.target_qps is not None
    assert server.target_qps > 0
    assert server.log == "loadgen/colours-fp32-onnxruntime-cpu-1/server/Server"


def test_too_few_queries_are_not_valid(colours: Bundle, tmp_path: Path) -> None:
    few = EASY.model_copy(update={"queries": 10})
    (result,) = ask(colours, tmp_path, Scenario.SINGLE_STREAM, rules=few)
    assert result.queries == 10
    assert not result.valid
    assert result.reasons == ("too few queries for its percentile",)


def test_a_broken_bound_is_not_valid(colours: Bundle, tmp_path: Path) -> None:
    hasty = EASY.model_copy(update={"target_latency_ms": 0.000_001, "queries": 20})
    (result,) = ask(colours, tmp_path, Scenario.SERVER, rules=hasty)
    assert not result.valid
    assert "too many queries took longer than the bound" in result.reasons
    assert any("Reduce target QPS" in reason for reason in result.reasons)


def test_an_engine_that_refuses_its_pictures_is_an_error(colours: Bundle, tmp_path: Path) -> None:
    with pytest.raises(LoadGenError, match="the picture's height is 7; the model takes 8"):
        ask(colours, tmp_path, Scenario.SINGLE_STREAM, images=IMAGES[:, :7])


def test_pictures_that_fail_make_a_run_invalid() -> None:
    notes = {"result_validity": "VALID", "early_stopping_met": True}
    failed = Outcome(failures=2, failure="the engine failed")
    assert loadgen.reasons(notes, failed) == ("2 pictures were not classified: the engine failed",)
    assert loadgen.reasons(notes, Outcome(failures=0)) == ()


def test_a_run_without_a_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LoadGenError, match=r"left no mlperf_log_detail\.txt"):
        read_log(tmp_path / loadgen.DETAIL_FILE)


def test_without_loadgen_the_line_that_installs_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loadgen, "find_spec", lambda name: None)
    with pytest.raises(LoadGenError, match=r'pip install "foveate-bench\[loadgen\]"'):
        loadgen.require()


def test_the_command_asks_what_it_recommends(
    golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    run_job = loadgen._run_job

    def noting(job: Job, folder: Path) -> Outcome:
        jobs.append(job)
        return run_job(job, folder)

    monkeypatch.setattr(loadgen, "_run_job", noting)
    monkeypatch.setattr(peaks, "SECONDS", 0.01)
    out = tmp_path / "out"
    code = bench.main(
        [
            *("--repository", str(golden_bundle.parents[1]), "--model", "colours"),
            *("--backend", "onnxruntime", "--batch", "3", "--threads", "1", "--outputs", "logits"),
            *("--rounds", "1", "--seconds", "0", "--objective", "throughput"),
            *("--loadgen", "SingleStream", "--loadgen-seconds", "0", "--out", str(out)),
        ]
    )
    assert code == 0
    report = Report.read(out / "results.json")
    assert report.recommendation is not None
    (choice,) = report.recommendation.choices
    assert [result.target for result in report.loadgen] == ["engine", "server"]
    assert {result.configuration for result in report.loadgen} == {choice.case.configuration}
    assert [job.settings["max_batch"] for job in jobs] == [3, 3]
    assert all((out / result.log / loadgen.DETAIL_FILE).is_file() for result in report.loadgen)
    assert report.roofline is not None
    assert [floor.case for floor in report.roofline.floors] == [choice.case]
