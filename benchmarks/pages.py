"""The parts of a page that a benchmark writes: from a comment with its command to another."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def part(page: Path, benchmark: str, *, package: str = "benchmarks") -> str:
    """Return what `benchmark` of a package wrote into a page."""
    match = _between(f"{package}.{benchmark}").search(page.read_text(encoding="utf-8"))
    assert match is not None, f"{page.name} has no part of {benchmark}"
    return match[2]


def write_part(page: Path, benchmark: str, text: str, *, package: str = "benchmarks") -> None:
    """Put `text` in the place of what `benchmark` of a package wrote into a page before."""
    found = page.read_text(encoding="utf-8")
    between = _between(f"{package}.{benchmark}")
    written, parts = between.subn(lambda match: match[1] + text + match[3], found)
    assert parts == 1, f"{page.name} has {parts} parts of {benchmark}"
    page.write_text(written, encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns but the first hold numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def middle(values: Mapping[str, float], decimals: int) -> str:
    """Return the middle value and the range around it."""
    low, median, high = (f"{values[key]:,.{decimals}f}" for key in ("min", "median", "max"))
    return f"{median} ({low} to {high})"


def _between(module: str) -> re.Pattern[str]:
    begin = re.escape(f"<!-- Written by `python -m {module}`. -->\n\n")
    return re.compile(f"({begin})(.*?)(\n\n<!-- Written until here. -->)", re.DOTALL)
