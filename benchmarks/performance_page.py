"""Writes docs/performance.md from the results that `foveate bench` left in results/bench.

python -m benchmarks.performance_page

Each folder there is the `--out` of one run.
"""

import re
from pathlib import Path

from foveate_serve.bench.document import RESULTS_FILE, Report
from foveate_serve.bench.files import TEXT_FILE
from foveate_serve.bench.report import about, summary

RESULTS = Path(__file__).parent / "results" / "bench"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

_INTRODUCTION = """\
# Performance

<!-- Written by `python -m benchmarks.performance_page` from benchmarks/results/bench. -->

What a request costs, where its time goes and what was tried to make it cheaper stands in
[what a request costs](serving/throughput.md); the copies of its pixels, memory, start, workers,
models and connections in [memory, start and scale](serving/scale.md); the comparison with
Triton's core and MLServer in [load](client/load.md).

Below is what [`foveate bench`](serving/bench.md) measured on the machines at hand. It measures the
same on yours in one command. Every case, the roofline and the slowest operators stand in the
reports.
"""


def page(results: Path = RESULTS) -> str:
    """Return the page for a folder of runs; raises DocumentError and OSError."""
    parts = [_INTRODUCTION]
    for path in sorted(results.glob(f"*/{RESULTS_FILE}")):
        report = Report.read(path)
        folder = f"../benchmarks/results/bench/{path.parent.name}"
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
