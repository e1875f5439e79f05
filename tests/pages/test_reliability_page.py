"""The tables of docs/reliability.md are those of the results, and no promise was broken."""

import json

from benchmarks import pages
from tests.faults.__main__ import FAULTS, page_part
from tests.fuzz import __main__ as fuzz
from tests.soak import __main__ as soak

PAGE = pages.DOCS / "reliability.md"
RESULTS = pages.DOCS.parent / "benchmarks/results/faults.json"


def test_the_table_is_that_of_the_results() -> None:
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert pages.part(PAGE, "faults", package="tests") == page_part(result)
    assert [row["name"] for row in result["rows"]] == [fault.__name__ for fault in FAULTS]
    assert not [row for row in result["rows"] if "broken" in row]


def test_the_table_of_the_soak_is_that_of_the_results() -> None:
    result = json.loads((pages.DOCS.parent / soak.RESULTS).read_text(encoding="utf-8"))
    assert pages.part(PAGE, "soak", package="tests") == soak.page_part(result)
    for row in result["rows"]:
        assert row["minutes"] >= soak.LONG_MINUTES
        assert not row["faults"]


def test_the_table_of_the_fuzzers_is_that_of_the_results() -> None:
    result = json.loads((pages.DOCS.parent / fuzz.RESULTS).read_text(encoding="utf-8"))
    assert pages.part(PAGE, "fuzz", package="tests") == fuzz.page_part(result)
    for row in result["rows"]:
        assert row["executions"] >= fuzz.EXECUTIONS[row["target"]]
        assert row["finding"] is None
