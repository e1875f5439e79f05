"""The files of a report."""

from pathlib import Path

from foveate_bench.document import Report
from foveate_bench.page import to_html
from foveate_bench.plots import draw_plots
from foveate_bench.report import to_markdown

PAGE_FILE = "report.html"
TEXT_FILE = "README.md"


def write_files(report: Report, folder: Path) -> None:
    """Write a report into `folder`; raises OSError.

    These are results.json, README.md, the charts, report.html and, where
    something is recommended, profile.toml.
    """
    report.write(folder)
    if report.recommendation is not None and report.recommendation.choices:
        report.recommendation.write(folder)
    draw_plots(report, folder)
    text = to_markdown(report)
    (folder / TEXT_FILE).write_text(text, encoding="utf-8")
    (folder / PAGE_FILE).write_text(to_html(text, folder), encoding="utf-8")
