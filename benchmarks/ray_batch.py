"""What `foveate batch --engine ray` costs beside the same run in one process.

python -m benchmarks.ray_batch --python FILE [--repository DIR] [--images DIR]
    [--copies N] [--rounds N] [--page FILE]

FILE is the Python of an environment that has foveate-client[ray] and foveate-serve[cpu].
Both sides read the same copies of the photographs and must find the same
classes. Compared are pictures a second from the first picture to the last as
the command tells them, where Ray's workers start and open the model within
that time, and the seconds of the whole command, where Ray itself starts as
well. The rounds alternate, so that a drifting machine does not favour one.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks import machine, pages, script
from benchmarks.request_cost import MODEL, ratio, summary
from foveate_runtime.options import option

RESULTS = Path(__file__).parent / "results" / "ray_batch.json"
PAGE = pages.DOCS / "client" / "batch.md"
ENGINES = ("here", "ray")


def batch_run(python: Path, images: Path, repository: Path, engine: str) -> dict[str, Any]:
    """Run `foveate batch` once; return its rate, the seconds of all, and the best classes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.jsonl"
        command: list[str | Path] = [
            python,
            "-m",
            "foveate_client",
            "batch",
            images,
            "--out",
            out,
            "--json",
        ]
        source: list[str | Path] = [
            "--repository",
            repository,
            "--model",
            MODEL,
            "--engine",
            engine,
        ]
        began = time.monotonic()
        run = subprocess.run([*command, *source], check=True, stdout=subprocess.PIPE)
        seconds = time.monotonic() - began
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return {
        "rate": json.loads(run.stdout)["images_per_second"],
        "seconds": seconds,
        "best": {row["image"]: row["class_1"] for row in rows},
    }


def measure(
    python: Path, repository: Path, images: Path, copies: int, rounds: int
) -> dict[str, Any]:
    """Alternate the two; return their pictures a second, their seconds, and how these compare."""
    load = os.getloadavg()[0]
    rates: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder)
        for number in range(copies):
            shutil.copytree(images, copied / str(number))
        for _ in track(range(rounds), "rounds", console=Console(stderr=True)):
            answers = {engine: batch_run(python, copied, repository, engine) for engine in ENGINES}
            assert answers["ray"]["best"] == answers["here"]["best"], "the engines disagree"
            for engine, answer in answers.items():
                rates[engine].append(answer["rate"])
                seconds[engine].append(answer["seconds"])
    return {
        "benchmark": "ray_batch",
        "model": MODEL,
        "photographs": len(answers["here"]["best"]),
        "rounds": rounds,
        "photographs_per_second": {name: summary(values) for name, values in rates.items()},
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "ratios": {"ray / here": ratio(rates["ray"], rates["here"])},
        # Above nothing, others were at work on the machine, and the rates are theirs as well.
        "load_average_before": round(load, 2),
        "machine": machine.describe(),
    }


def page_part(result: Mapping[str, Any]) -> str:
    """Return what the page says of a result."""
    rows = [
        [name, *(_spread(result[what][engine]) for what in ("photographs_per_second", "seconds"))]
        for name, engine in (("in one process", "here"), ("`--engine ray`", "ray"))
    ]
    about = (
        f"{result['photographs']:,} photographs and `{result['model']}` on an "
        f"{result['machine']['processor']} with {result['machine']['cores']} cores, "
        f"{result['rounds']} rounds: from the first picture to the last Ray answers "
        f"{_spread(result['ratios']['ray / here'], '.2f')} times as many a second."
    )
    head = ["", "photographs a second", "seconds of the whole command"]
    return f"{textwrap.fill(about, 100)}\n\n{pages.table(head, rows)}"


def _spread(found: Mapping[str, float], form: str = ".1f") -> str:
    return f"{found['median']:{form}} ({found['min']:{form}} to {found['max']:{form}})"


@dataclass(frozen=True, kw_only=True)
class Options(script.Photographs):
    """The command line."""

    python: Path = option("that of an environment with foveate-client[ray] and foveate-serve[cpu]")
    copies: int = option("of the photographs in a run", default=20)
    rounds: int = option("of both", default=3)


def main() -> int:
    """Measure, write the results and the page's part, and return the exit code."""
    options = script.parse(Options, __doc__, out=RESULTS, page=PAGE)
    result = measure(
        options.python, options.repository, options.images, options.copies, options.rounds
    )
    script.finish(result, page_part, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
