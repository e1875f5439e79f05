"""What stands beside the times in the document comes back from it, and into the report."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveate_bench import roofline
from foveate_bench.document import Report
from foveate_bench.loadgen import LoadGenResult, Scenario
from foveate_bench.operators import Profile
from foveate_bench.peaks import Peaks, ProductPeak
from foveate_bench.recommend import Objective, recommend
from foveate_bench.report import to_markdown, verdicts
from foveate_runtime.backends.base import OperatorTime
from foveate_runtime.bundle.bundle import Bundle

from .conftest import measurement


@pytest.fixture
def report(make_report: Callable[..., Report], colours: Bundle) -> Report:
    measured = measurement((4.0, 5.0, 6.0))
    peaks = Peaks(
        threads=2,
        products=(ProductPeak(precision="fp32", backend="openvino", operations_per_second=1e11),),
        copy_bytes_per_second=1e10,
    )
    floors, _ = roofline.run([measured], {"colours": colours}, measure=lambda _: peaks)
    times = [OperatorTime(name="planes", operator="Transpose", calls=4, seconds=0.008)]
    asked = LoadGenResult(
        configuration=measured.case.configuration,
        target="server",
        scenario=Scenario.SERVER,
        metric="completed",
        value=123.4,
        unit="pictures/s",
        valid=False,
        reasons=("it had too few queries",),
        queries=77,
        mean_ms=1,
        p50_ms=1,
        p90_ms=2,
        p99_ms=3,
        target_qps=130,
        target_latency_ms=100,
        version="6",
        log="loadgen/colours/server/Server",
    )
    objective = Objective(kind="p99", p99_ms=50)
    return make_report(measured).model_copy(
        update={
            "roofline": floors,
            "operators": (Profile.of(measured.case, times, runs=4),),
            "loadgen": (asked,),
            "recommendation": recommend([measured], [], objective, max_drop=1),
        }
    )


def test_the_document_keeps_every_section(report: Report, tmp_path: Path) -> None:
    again = Report.read(report.write(tmp_path))
    assert again == report
    assert again.roofline is not None
    assert np.isfinite(again.roofline.floors[0].distance)


def test_the_report_shows_every_section(report: Report) -> None:
    text = to_markdown(report)
    assert report.roofline is not None
    floor = report.roofline.floors[0]
    assert f"| {floor.floor_ms:.2f} | {floor.distance:.1f}x |" in text
    assert "100 G operations/s fp32 (openvino)" in text
    assert "| planes | Transpose | 1 | 2.000 | 100.0% |" in text
    assert "it had too few queries" in text
    assert "For the most pictures a second with a p99 of at most 50 ms, at most 1 point" in text
    assert "`foveate serve --profile profile.toml` takes it." in text


def test_the_command_says_what_it_recommends(report: Report) -> None:
    *_, last = verdicts(report)
    assert last.startswith("recommended: colours fp32 on onnxruntime, cpu, 2 threads")
    assert report.recommendation is not None
    unfit = Objective(kind="p99", p99_ms=1)
    nothing = recommend(report.measurements, [], unfit, max_drop=1)
    *_, last = verdicts(report.model_copy(update={"recommendation": nothing}))
    assert last.startswith("a recommendation for colours: the shortest p99 is 5.98 ms")
