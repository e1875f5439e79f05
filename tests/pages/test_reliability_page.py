"""The table of docs/reliability.md is that of the results, and no promise was broken."""

import json

from benchmarks import pages
from tests.faults.__main__ import FAULTS, page_part

PAGE = pages.DOCS / "reliability.md"
RESULTS = pages.DOCS.parent / "benchmarks/results/faults.json"


def test_the_table_is_that_of_the_results() -> None:
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert pages.part(PAGE, "faults", package="tests") == page_part(result)
    assert [row["name"] for row in result["rows"]] == [fault.__name__ for fault in FAULTS]
    assert not [row for row in result["rows"] if "broken" in row]
