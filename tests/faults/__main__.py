"""Break what stands around a server, one thing at a time, and write down what clients saw.

python -m tests.faults                  all, into docs/reliability.md
python -m tests.faults --short          those of a second or two, without a page
python -m tests.faults NAME...          these
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine, pages
from rich.console import Console

from . import clients, network, processes, repository, resources
from .bench import Bench, Fault, Skipped

MODULES = (processes, repository, resources, network, clients)
FAULTS: tuple[Fault, ...] = tuple(fault for module in MODULES for fault in module.FAULTS)
SHORT = ("kill_server", "kill_worker", "rubbish", "truncated_file", "vanishing_clients")
"""What continuous integration tries each time."""


def attempt(fault: Fault, source: Path) -> dict[str, object]:
    """Try one fault in a folder of its own."""
    row: dict[str, object] = {"name": fault.__name__, "fault": (fault.__doc__ or "").strip()}
    with tempfile.TemporaryDirectory(prefix="foveate-fault-") as folder:
        try:
            seen = fault(Bench(Path(folder), source))
        except Skipped as reason:
            return {**row, "skipped": str(reason)}
        except Exception as error:  # noqa: BLE001 - the others are tried all the same
            return {**row, "broken": f"{type(error).__name__}: {error}"}
    return {
        **row,
        "codes": dict(seen.codes),
        "recovery_seconds": round(seen.recovery_seconds, 2),
        "note": seen.note,
    }


def page_part(result: dict[str, object]) -> str:
    """Return the table of the page."""
    rows = []
    for row in result["rows"]:
        if "note" not in row:
            told = row.get("broken") or f"not tried: {row['skipped']}"
            rows.append([row["fault"], "", "", told])
            continue
        codes = ", ".join(f"{count} {code}" for code, count in sorted(row["codes"].items()))
        recovery = f"{row['recovery_seconds']:.1f} s" if row["recovery_seconds"] else "none failed"
        rows.append([row["fault"], codes, recovery, row["note"]])
    return pages.table(["what breaks", "calls", "until all succeed", "what happens"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="; ".join(f.__name__ for f in FAULTS)
    )
    parser.add_argument("--short", action="store_true", help="a few, without a page")
    parser.add_argument("--repository", type=Path, default=Path("demo-output/repository"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/faults.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    options = parser.parse_args()
    names = options.names or (SHORT if options.short else [fault.__name__ for fault in FAULTS])
    if unknown := sorted(set(names) - {fault.__name__ for fault in FAULTS}):
        parser.error(f"no fault {unknown[0]!r}: --help lists them")
    console, rows = Console(stderr=True), []
    for fault in FAULTS:
        if fault.__name__ not in names:
            continue
        started = time.monotonic()
        row = attempt(fault, options.repository)
        rows.append(row)
        told = row.get("broken") or row.get("skipped") or row.get("codes")
        console.print(f"{fault.__name__}: {told} ({time.monotonic() - started:.0f} s)")
    if not options.names and not options.short:
        result = {"benchmark": "faults", "machine": machine.describe(), "rows": rows}
        machine.save(result, options.out)
        pages.write_part(options.page, "faults", page_part(result), package="tests")
        console.print(f"written to {options.out} and {options.page}")
    return int(any("broken" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
