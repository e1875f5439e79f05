"""Writes docs/serving/backends.md from the results that `foveate bench` left in results/bench.

python -m benchmarks.backends_page

Each folder there is the `--out` of one run.
"""

import re
from pathlib import Path

from foveate_bench.document import RESULTS_FILE, Report
from foveate_bench.files import TEXT_FILE
from foveate_bench.report import about, summary

RESULTS = Path(__file__).parent / "results" / "bench"
PAGE = Path(__file__).parents[1] / "docs" / "serving" / "backends.md"

_INTRODUCTION = """\
# The backends compared

<!-- Written by `python -m benchmarks.backends_page` from benchmarks/results/bench. -->

What [`foveate bench`](bench.md) measured on the machines at hand. It measures the same on yours in
one command. Every case, the roofline and the slowest operators stand in the reports. What all of a
request costs stands in [performance](../performance.md).
"""


def page(results: Path = RESULTS) -> str:
    """Return the page for a folder of runs; raises DocumentError and OSError."""
    parts = [_INTRODUCTION]
    for path in sorted(results.glob(f"*/{RESULTS_FILE}")):
        report = Report.read(path)
        folder = f"../../benchmarks/results/bench/{path.parent.name}"
        parts += [
            f"## {path.parent.name}\n",
            f"{about(report)} [All of it]({folder}/{TEXT_FILE}).\n",
            *(_one_deeper(part) + "\n" for part in summary(report, pictures=f"{folder}/")),
        ]
    return "\n".join(parts)


def _one_deeper(text: str) -> str:
    return re.sub(r"^(#+ )", r"#\1", text, flags=re.MULTILINE)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
