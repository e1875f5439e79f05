"""Run the fuzzers, two at a time, and say what they found.

    python -m tests.fuzz                    all that the table asks, into docs/reliability.md
    python -m tests.fuzz --seconds 15       each for so long

Corpora and findings stay in fuzz-output/NAME; a finding is run again by
`python -m tests.fuzz.NAME fuzz-output/NAME 1 0 0` with its file alone in the corpus.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, pages
from rich.console import Console
from rich.table import Table

from foveate_runtime.options import argument, option, parse

RESULTS, PAGE = Path("benchmarks/results/fuzz.json"), Path("docs/reliability.md")
EXECUTIONS = {
    "pictures": 1_000_000,
    "frames": 1_000_000,
    "calls grpcio": 100_000,
    "calls http2": 100_000,
}
"""Of each target; `calls` asks a server with the transport named."""


def _target(text: str) -> str:
    if text not in EXECUTIONS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(EXECUTIONS)}")
    return text


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    targets: tuple[str, ...] = argument(
        ", ".join(EXECUTIONS), nargs="*", metavar="TARGET", type=_target
    )
    seconds: int = option("of each target, 0: no limit", default=0)
    seed: int = option("of the fuzzer", default=1)
    repository: Path = option("of the classifiers", default=Path("demo-output/repository"))
    out: Path = option("the folder of corpora and findings", default=Path("fuzz-output"))
    result: Path | None = option("a results file to write, and no page")


@dataclass(frozen=True)
class Outcome:
    """What a target's run came to; `finding` is its last line where it failed."""

    target: str
    executions: int
    branches: int | None
    seconds: float
    finding: str | None


def run(target: str, options: Options) -> Outcome:
    """Run one target in a process of its own."""
    name, _, transport = target.partition(" ")
    folder = options.out / target.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    where = options.repository if transport else folder
    runs = -1 if options.seconds else EXECUTIONS[target]
    command = [sys.executable, "-m", f"tests.fuzz.{name}", where, runs, options.seconds]
    command += [options.seed, *filter(None, [transport])]
    started = time.monotonic()
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, errors="replace", check=False
    )
    log = folder / "log.txt"
    log.write_text(ended.stdout + ended.stderr, encoding="utf-8")
    executed = re.findall(r"stat::number_of_executed_units: (\d+)", ended.stderr)
    branches = re.findall(r"cov: (\d+)", ended.stderr)
    errors = re.findall(r"^\w*(?:Error|ERROR|SUMMARY).*$", ended.stderr, re.MULTILINE)
    return Outcome(
        target=target,
        executions=int(executed[-1]) if executed else 0,
        branches=int(branches[-1]) if branches else None,
        seconds=round(time.monotonic() - started, 1),
        finding=f"{errors[-1] if errors else 'it ended early'} ({log})"
        if ended.returncode
        else None,
    )


def show(outcomes: Sequence[Outcome]) -> None:
    """Print the table."""
    table = Table("target", "executions", "branches", "seconds", "finding")
    for outcome in outcomes:
        branches = "" if outcome.branches is None else f"{outcome.branches:,}"
        table.add_row(
            *(outcome.target, f"{outcome.executions:,}", branches),
            *(f"{outcome.seconds:.0f}", outcome.finding or "none"),
        )
    Console().print(table)


def page_part(result: Mapping[str, Any]) -> str:
    """Return the table of the page."""
    head = ["what is changed", "executions", "branches", "seconds", "findings"]
    rows = [
        [
            row["target"],
            f"{row['executions']:,}",
            "" if row["branches"] is None else f"{row['branches']:,}",
            f"{row['seconds']:.0f}",
            row["finding"] or "none",
        ]
        for row in result["rows"]
    ]
    return pages.table(head, rows)


def main() -> int:
    options = parse(
        Options,
        sys.argv[1:],
        prog="python -m tests.fuzz",
        description=__doc__.partition("\n")[0],
        epilog="",
    )
    targets = options.targets or list(EXECUTIONS)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda target: run(target, options), targets))
    show(outcomes)
    rows = [asdict(outcome) for outcome in outcomes]
    result = {"benchmark": "fuzz", "machine": machine.describe(), "rows": rows}
    whole = not options.targets and not options.seconds
    if options.result or whole:
        machine.save(result, options.result or RESULTS)
    if whole and not options.result:
        pages.write_part(PAGE, "fuzz", page_part(result), package="tests")
    return int(any(outcome.finding for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
