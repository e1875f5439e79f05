"""The report as Markdown, as a page and as charts."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from foveate_bench.document import Report
from foveate_bench.files import write_files
from foveate_bench.page import to_html
from foveate_bench.report import to_markdown, verdicts

from .conftest import measurement


@pytest.fixture
def report(make_report: Callable[..., Report]) -> Report:
    return make_report(
        measurement((1.0, 1.2, 1.1)),
        measurement((8.0, 8.1, 8.2), batch=8),
        measurement((1.1, 1.1, 1.2), backend="openvino"),
        measurement((20.0, 20.0, 20.1), backend="openvino", batch=8),
        measurement((2.0, 2.1, 2.2), variant="int8"),
        measurement((3.0, 3.1, 3.2), outputs="cam"),
        measurement((1.5, 1.6, 1.7), threads=1),
    )


def test_the_fastest_is_bold_and_ties_are_marked(report: Report) -> None:
    text = to_markdown(report)
    rows = [line for line in text.splitlines() if line.startswith("| onnxruntime | fp32 | cpu | 2")]
    assert "| **1.10** | **3.10** |  |" in rows[0]
    assert "1000 (8)" not in rows[0]
    assert f"{8000 / 8.1:.0f} (8)" in rows[0]
    openvino = next(line for line in text.splitlines() if line.startswith("| openvino"))
    assert "| 1.10 = |" in openvino
    int8 = next(line for line in text.splitlines() if line.startswith("| onnxruntime | int8"))
    assert "| 2.10 |" in int8


def test_the_verdicts_are_lines(report: Report) -> None:
    alone, together, explained = verdicts(report)
    assert alone == (
        "colours, logits, batch 1: onnxruntime fp32 (cpu, 2 threads), 1.10 ms; "
        "ties: openvino fp32 (cpu, 2 threads)"
    )
    assert together == "colours, logits, batch 8: onnxruntime fp32 (cpu, 2 threads), 8.10 ms"
    assert explained == "colours, cam, batch 1: onnxruntime fp32 (cpu, 2 threads), 3.10 ms"


def test_a_bar_in_a_reason_breaks_no_table(report: Report) -> None:
    assert r"| abacus | no beads \| no frame | pip install beads |" in to_markdown(report)


def test_the_page_needs_nothing_else(report: Report, tmp_path: Path) -> None:
    write_files(report, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count('src="data:image/png;base64,') == 3
    assert len(re.findall(r"<table>", page)) == to_markdown(report).count("\n| ---")
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_the_charts_are_drawn_of_what_there_is(
    report: Report, make_report: Callable[..., Report], tmp_path: Path
) -> None:
    full, maps = tmp_path / "full", tmp_path / "maps"
    for folder in (full, maps):
        folder.mkdir()
    write_files(report, full)
    for name in ("latency.png", "throughput.png", "accuracy.png"):
        with Image.open(full / name) as picture:
            assert len(picture.convert("L").getcolors(1 << 16) or ()) > 20
    write_files(make_report(measurement((1.0,), outputs="cam"), accuracy=False), maps)
    assert {path.name for path in maps.glob("*.png")} == {"latency.png"}


def test_markup_in_a_name_is_text_on_the_page(tmp_path: Path) -> None:
    page = to_html("# <b>bold</b>\n\n<script>alert(1)</script>\n", tmp_path)
    assert "<script" not in page
    assert "<title>&lt;b&gt;bold&lt;/b&gt;</title>" in page
