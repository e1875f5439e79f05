"""Ask a server for an hour in every way, and see that it ends as it was after its first minutes.

python -m tests.soak                      an hour with each transport, into docs/reliability.md
python -m tests.soak --minutes 2          a short form
python -m tests.soak --planted            a server that leaks: the same check must say so

Every answer of two clients is compared with the known answer of its own picture, so that no
two callers' answers can be mixed up. Memory, files and threads of all of the server's processes
are sampled; what the last third has more than the first, in the median, has a limit.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine, pages
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..conftest import TRANSPORTS
from ..faults.bench import MODEL, Bench
from .steady import Sample, growth, leaks, take
from .traffic import Traffic

RESULTS, PAGE = Path("benchmarks/results/soak.json"), Path("docs/reliability.md")
LONG_MINUTES = 30.0
"""A shorter run is a check, and no result for the page."""
SAMPLES = 120
_PLANTED = str(Path(__file__).parent / "leaking.py")

_EXPECTED = frozenset({"OK", "INVALID_ARGUMENT"})
"""Of what is sent beside the compared pictures; a picture that is cut off is refused."""


def soak(bench: Bench, transport: str, seconds: float, *, planted: bool) -> dict[str, object]:
    """Ask a server for so long; return what was seen, with the `faults` that were found."""
    flags = ("--admin", "--http-address", "127.0.0.1:0", "--transport", transport)
    program = (sys.executable, _PLANTED) if planted else None
    samples: list[Sample] = []
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with bench.serving(*flags, program=program) as server:
        log = server.log.read_text(encoding="utf-8")
        http = re.findall(r"HTTP on http://(\S+)", log)[-1]
        with (
            bench.asking(server.address) as honest,
            Traffic(server.address, http, MODEL) as traffic,
            Progress(*columns, console=Console(stderr=True)) as progress,
        ):
            task = progress.add_task(f"soaking {transport}", total=SAMPLES)
            for _ in range(SAMPLES):
                time.sleep(seconds / SAMPLES)
                samples.append(take(server.process.pid))
                progress.advance(task)
            codes, seen = honest.codes(), dict(traffic.seen)
        faults = leaks(samples)
        faults += [f"{count} answers were {code}" for code, count in codes.items() if code != "OK"]
        faults += [
            f"{count} of {what}"
            for what, count in seen.items()
            if what.partition(": ")[2] not in _EXPECTED
        ]
        if server.stop() != 0:
            faults.append("the server did not stop with 0")
    return {
        "transport": transport,
        "minutes": round(seconds / 60, 1),
        "codes": codes,
        "traffic": seen,
        "growth": {name: round(more, 1) for name, more in growth(samples).items()},
        "first": asdict(samples[SAMPLES // 4]),
        "last": asdict(samples[-1]),
        "faults": faults,
    }


def write(result: Mapping[str, Any]) -> None:
    """Write a long run into the results and the page; the rows of other transports stay."""
    rows = list(result["rows"])
    if RESULTS.exists():
        measured = {row["transport"] for row in rows}
        before = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
        rows += [row for row in before if row["transport"] not in measured]
    rows.sort(key=lambda row: str(row["transport"]))
    machine.save({**result, "rows": rows}, RESULTS)
    pages.write_part(PAGE, "soak", page_part({"rows": rows}), package="tests")


def page_part(result: Mapping[str, Any]) -> str:
    """Return the table of the page."""
    rows = []
    for row in result["rows"]:
        first, last = row["first"], row["last"]
        others = sum(row["traffic"].values())
        rows.append(
            [
                f"`{row['transport']}`",
                f"{row['minutes']:g}",
                f"{row['codes'].get('OK', 0):,}",
                f"{others:,}",
                *(
                    f"{first[what]:.0f}, {last[what]:.0f} ({row['growth'][what]:+.1f})"
                    for what in ("mebibytes", "files", "threads")
                ),
                "; ".join(row["faults"]) or "none",
            ]
        )
    head = ["transport", "minutes", "compared answers", "other calls", "MiB", "files", "threads"]
    return pages.table([*head, "faults"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="with each transport")
    parser.add_argument("--transport", choices=TRANSPORTS, help="with this one alone")
    parser.add_argument("--planted", action="store_true", help="a server that leaks")
    parser.add_argument("--repository", type=Path, default=Path("demo-output/repository"))
    parser.add_argument("--out", type=Path, help="of a short form too, and without the page")
    options = parser.parse_args()
    console, rows = Console(stderr=True), []
    for transport in [options.transport] if options.transport else TRANSPORTS:
        with tempfile.TemporaryDirectory(prefix="foveate-soak-") as folder:
            bench = Bench(Path(folder), options.repository)
            row = soak(bench, transport, 60 * options.minutes, planted=options.planted)
        rows.append(row)
        console.print(f"{transport}: {row['growth']}; {'; '.join(row['faults']) or 'steady'}")  # type: ignore[arg-type]
    if options.planted:
        found = all("mebibytes" in str(row["faults"]) for row in rows)
        console.print("the leak was seen" if found else "the leak was not seen")
        return int(not found)
    result = {"benchmark": "soak", "machine": machine.describe(), "rows": rows}
    if options.out is not None:
        machine.save(result, options.out)
        console.print(f"written to {options.out}")
    elif options.minutes >= LONG_MINUTES:
        write(result)
        console.print(f"written to {RESULTS} and {PAGE}")
    return int(any(row["faults"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
