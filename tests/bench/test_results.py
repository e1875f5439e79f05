"""Percentiles, ties, and the document that holds them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from foveate_bench.document import DocumentError, Report
from foveate_bench.results import Latency, find_ties, tie

from .conftest import measurement


def test_the_percentiles_are_those_of_all_runs_and_no_run_is_left_out() -> None:
    seconds = [*np.linspace(0.001, 0.1, 100), 9.0]
    latency = Latency.of(seconds)
    assert latency.runs == 101
    assert latency.p50_ms == pytest.approx(51)
    assert latency.p90_ms == pytest.approx(91)
    assert latency.p99_ms == pytest.approx(100)
    assert latency.max_ms == 9000
    assert latency.mean_ms == pytest.approx(1000 * np.mean(seconds))


def test_percentiles_that_fall_are_no_distribution() -> None:
    with pytest.raises(ValidationError, match="do not rise"):
        Latency(runs=2, mean_ms=1, min_ms=1, p50_ms=3, p90_ms=2, p95_ms=4, p99_ms=5, max_ms=6)


def test_the_spread_is_that_of_the_rounds() -> None:
    assert measurement((4.0, 5.0, 6.0)).spread == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("first", "second", "tied"),
    [
        ((1.0, 2.0, 3.0), (1.1, 2.1, 3.1), False),  # the machine drifts, the order does not
        ((1.0, 2.0, 3.0), (1.1, 1.9, 3.1), True),
        ((1.0, 1.0, 1.0), (1.0, 1.1, 1.1), True),
        ((3.0, 3.0), (1.0, 2.0, 9.0), False),  # stopped in the third round
    ],
)
def test_a_difference_counts_that_shows_in_every_round(
    first: tuple[float, ...], second: tuple[float, ...], tied: bool
) -> None:
    a, b = measurement(first), measurement(second, backend="openvino")
    assert tie(a, b) is tied
    assert tie(b, a) is tied


def test_rivals_are_cases_of_one_batch_and_the_same_outputs() -> None:
    fast = measurement((1.0, 1.2, 1.1))
    close = measurement((1.1, 1.1, 1.2), backend="openvino")
    slow = measurement((2.0, 2.1, 2.2), variant="int8")
    other_batch = measurement((9.0, 9.1, 9.2), batch=8)
    other_outputs = measurement((5.0, 5.0, 5.0), outputs="cam")
    plain, batched, mapped = find_ties([slow, fast, close, other_batch, other_outputs])
    assert (plain.fastest, plain.tied) == (fast.case, (close.case,))
    assert (batched.fastest, batched.tied) == (other_batch.case, ())
    assert (mapped.fastest, mapped.tied) == (other_outputs.case, ())


def test_a_document_reads_what_it_wrote(make_report: Callable[..., Report], tmp_path: Path) -> None:
    report = make_report(measurement((1.0, 2.0)), measurement((2.0, 3.0), outputs="cam"))
    path = report.write(tmp_path)
    assert Report.read(path) == report


def test_a_document_with_another_field_is_refused_by_name(
    make_report: Callable[..., Report], tmp_path: Path
) -> None:
    path = make_report(measurement((1.0,))).write(tmp_path)
    document = json.loads(path.read_text(encoding="utf-8"))
    document["measurements"][0]["latency"]["p98_ms"] = 1
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(DocumentError, match=r"measurements\.0\.latency\.p98_ms"):
        Report.read(path)
