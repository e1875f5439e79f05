"""What attacks do to a server of each transport: the table of runs that an orchestrator measured.

python -m benchmarks.attacks --grpcio FILE --http2 FILE [--bare FILE] [--page FILE]

Each FILE has a JSON object a line for one attack: whether the server lives, its memory, the
longest wait of an innocent connection's PING, and what a well-behaved client saw before,
during and after. `--bare` is a run of the same attacks against `benchmarks.bare`: where the
attacker's share of the machine alone makes the client wait, that run is the measure. A FILE
that is left out keeps what the result had of it.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, pages

RESULTS = Path(__file__).parent / "results" / "attacks.json"
PAGE = pages.DOCS / "serving" / "attacks.md"
RUNS = ("grpcio", "http2", "bare")

LEAST_SHARE = 0.99
MOST_SLOWER = 5.0
"""p99 during an attack over p99 before it."""
MOST_OVER_BARE = 1.5
"""p99 during an attack over that of the bare server's client, where that is more."""
MOST_STALL_MS = 250.0
MOST_MEBIBYTES = 256


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a run measured of each attack, by its name; of two the last counts."""
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {f"{x['script'][7:-3]}/{x['case']}": _measured(x) for x in lines}


def _measured(line: Mapping[str, Any]) -> dict[str, Any]:
    good = line["good"]
    digits = {when: good[when].get("digit", {}) for when in ("before", "during", "after")}
    attack = line["attack"] if isinstance(line["attack"], dict) else {}
    return {
        "alive": line["alive"] and not line["killed_for_memory"],
        "answered": digits["during"].get("ok_share"),
        "answered_after": digits["after"].get("ok_share"),
        "p99_ms": [digits[when].get("p99_ms") for when in ("before", "during", "after")],
        "stall_ms": (attack.get("loop_probe") or {}).get("max_ms"),
        "peak_mebibytes": line["rss_peak_delta_mib"],
        "kept_mebibytes": line["rss_kept_mib"],
        "seconds": line["attack_s"],
    }


def missed(measured: Mapping[str, Any], bare: Mapping[str, Any] | None) -> list[str]:
    """Return the goals that a line does not reach."""
    before, during, _ = measured["p99_ms"]
    most = MOST_SLOWER * (before or 0)
    if bare is not None:
        most = max(most, MOST_OVER_BARE * (bare["p99_ms"][1] or 0))
    stall = measured["stall_ms"]
    checks = {
        "lives": measured["alive"],
        "answered": (measured["answered"] or 0) >= LEAST_SHARE,
        "p99": during is not None and during <= most,
        "stall": stall is None or stall <= MOST_STALL_MS,
        "memory": measured["peak_mebibytes"] <= MOST_MEBIBYTES,
        "after": (measured["answered_after"] or 0) >= LEAST_SHARE,
    }
    return [name for name, reached in checks.items() if not reached]


def page_part(result: Mapping[str, Any]) -> str:
    """Return the table of all attacks, and what the goals are."""
    runs: Mapping[str, Mapping[str, Any]] = result["runs"]
    transports = [run for run in RUNS[:2] if run in runs]
    names = sorted({name for run in transports for name in runs[run]})
    bare = runs.get("bare", {})
    rows = [
        [name, *(cell for run in transports for cell in _cells(runs[run], name, bare))]
        for name in names
    ]
    head = ["attack"]
    for run in transports:
        head += [f"{run}: answered", "p99, ms", "stall, ms", "MiB"]
    return "\n\n".join([*_sentences(runs, bare), pages.table(head, rows)])


def _sentences(runs: Mapping[str, Mapping[str, Any]], bare: Mapping[str, Any]) -> Iterable[str]:
    for run in (run for run in RUNS[:2] if run in runs):
        lines = runs[run]
        misses = {name: missed(line, bare.get(name)) for name, line in lines.items()}
        failing = {name: goals for name, goals in misses.items() if goals}
        said = f"`{run}`: {len(lines) - len(failing)} of {len(lines)} attacks are within the goals"
        which = "; ".join(f"{name} ({', '.join(goals)})" for name, goals in failing.items())
        yield f"{said}. Not within them: {which}." if which else f"{said}."


def _cells(lines: Mapping[str, Any], name: str, bare: Mapping[str, Any]) -> list[str]:
    measured = lines.get(name)
    if measured is None:
        return [""] * 4
    before, during, _ = (f"{x:.0f}" if x is not None else "none" for x in measured["p99_ms"])
    times = f"{before} → {during}"
    if name in bare and bare[name]["p99_ms"][1] is not None:
        times += f" (bare {bare[name]['p99_ms'][1]:.0f})"
    if "p99" in missed(measured, bare.get(name)):
        times += " **†**"
    stall = measured["stall_ms"]
    return [
        f"{measured['answered'] or 0:.2f}" if measured["alive"] else "**ended**",
        times,
        "" if stall is None else f"{stall:.0f}",
        f"{measured['peak_mebibytes']:+d}",
    ]


def main() -> None:
    """Parse the command line; put the runs into the results and the page's part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for run in RUNS:
        parser.add_argument(f"--{run}", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="whose part is written")
    options = parser.parse_args()
    old = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    runs: dict[str, dict[str, Any]] = old.get("runs", {})
    for run in RUNS:
        for path in getattr(options, run):
            runs.setdefault(run, {}).update(read(path))
    result = {"benchmark": "attacks", "machine": machine.describe(), "runs": runs}
    machine.save(result, options.out)
    part = page_part(result)
    pages.write_part(options.page, "attacks", part)
    Console().print(part, soft_wrap=True)


if __name__ == "__main__":
    main()
