"""The page of the backends is what the results say."""

from benchmarks.backends_page import PAGE, RESULTS, page

from foveate_bench.document import RESULTS_FILE, Report
from foveate_bench.files import TEXT_FILE
from foveate_bench.report import to_markdown


def test_the_page_is_generated_from_the_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_run_is_whole_and_its_report_is_of_its_results() -> None:
    runs = sorted(RESULTS.glob(f"*/{RESULTS_FILE}"))
    assert runs
    for path in runs:
        report = Report.read(path)
        assert report.complete, path
        assert report.measurements, path
        assert (path.parent / TEXT_FILE).read_text(encoding="utf-8") == to_markdown(report), path
