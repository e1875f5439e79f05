"""What pages say of a benchmark is what its results say."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from benchmarks import (
    comparison,
    feature_cost,
    finetuning,
    http_cost,
    int8_networks,
    memory,
    overload,
    pages,
    quantisers,
    scale,
    stages,
    startup,
    throughput,
    training,
    transports,
    trust,
    variants,
)

WRITERS = {
    "comparison": comparison,
    "feature_cost": feature_cost,
    "finetuning": finetuning,
    "http_cost": http_cost,
    "int8_networks": int8_networks,
    "memory": memory,
    "overload": overload,
    "quantisers": quantisers,
    "scale": scale,
    "stages": stages,
    "startup": startup,
    "throughput": throughput,
    "training": training,
    "transports": transports,
    "trust": trust,
    "variants": variants,
}


@pytest.mark.parametrize("benchmark", WRITERS)
def test_the_part_is_that_of_the_results(benchmark: str) -> None:
    writer: Any = WRITERS[benchmark]
    page: Path = writer.PAGE
    page_part: Callable[[Mapping[str, Any]], str] = writer.page_part
    result = json.loads(writer.RESULTS.read_text(encoding="utf-8"))
    assert pages.part(page, benchmark) == page_part(result)


def test_a_part_is_replaced_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = "<!-- Written by `python -m benchmarks.it`. -->", "<!-- Written until here. -->"
    page.write_text(f"before\n\n{begin}\n\nold\n\nolder\n\n{end}\nafter\n", encoding="utf-8")
    pages.write_part(page, "it", r"new \1")
    assert pages.part(page, "it") == r"new \1"
    assert page.read_text("utf-8") == f"before\n\n{begin}\n\nnew \\1\n\n{end}\nafter\n"
    with pytest.raises(AssertionError, match="has 0 parts of another"):
        pages.write_part(page, "another", "")
