"""What `foveate load` says of the servers that it has driven."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveate_client._connection import Credentials
from foveate_client._transports.channel import PLAINTEXT
from foveate_client.commands._options import SecurityOptions
from foveate_client.load.recorder import PERCENTILES, Latencies, Measurement
from foveate_client.load.search import Step

_SHOWN = (50.0, 90.0, 95.0, 99.0, 99.9)
_LATE_SHARE = 0.1
"""The generator's own delay that is worth a word, as a share of the median latency."""


Protocol = Literal["foveate", "oip"]


@dataclass(frozen=True, kw_only=True)
class Options(SecurityOptions):
    """The options of `foveate load`.

    Rates are in requests a second; `p99` is in milliseconds, and `duration`, `warmup` and
    `timeout` are in seconds.
    """

    images: tuple[Path, ...]
    address: str
    model: str
    version: str
    concurrency: int
    rate: float | None
    find_rate: bool
    throttle: bool
    p99: float | None
    duration: float
    warmup: float
    connections: int
    timeout: float
    cam_share: float
    feature_map_share: float
    feature_map_layer: str
    protocol: Protocol
    output: str
    compare: str | None
    compare_protocol: Protocol | None
    compare_model: str | None
    rounds: int
    seed: int
    plot: Path | None
    json: bool


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server to drive."""

    address: str
    protocol: str
    model: str
    credentials: Credentials = PLAINTEXT

    @property
    def name(self) -> str:
        """What it is called beside others."""
        return f"{self.address} ({self.protocol})"


@dataclass(kw_only=True)
class Outcome:
    """What was measured of one target; `steps` and `found` are those of a search."""

    target: Target
    model: str
    measurement: Measurement = field(default_factory=Measurement)
    steps: list[Step] = field(default_factory=list)
    found: Step | None = None


def curves(outcomes: Sequence[Outcome]) -> dict[str, Latencies]:
    """Return the latencies to draw, by their names."""
    several = len(outcomes) > 1
    return {
        f"{outcome.target.name}, {kind}" if several else kind: latencies
        for outcome in outcomes
        for kind, latencies in outcome.measurement.latencies.items()
    }


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """Return the table of one outcome, or of two beside each other."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for outcome in outcomes:
        table.add_column(Text(outcome.target.name), justify="right")
    if len(outcomes) == 2:
        table.add_column("second / first", justify="right")
    overall = [outcome.measurement.overall for outcome in outcomes]
    if any(outcome.steps for outcome in outcomes):
        _add_row(
            table,
            "highest rate that holds",
            [None if x.found is None else x.found.rate for x in outcomes],
            lambda rate: f"{rate:.1f}/s",
        )
    _add_row(table, "answered", [x.measurement.rate for x in outcomes], lambda x: f"{x:.1f}/s")
    _add_latencies(table, "", overall)
    kinds = list(dict.fromkeys(kind for x in outcomes for kind in x.measurement.latencies))
    if len(kinds) > 1:
        for kind in kinds:
            _add_latencies(
                table, f"{kind}, ", [x.measurement.latencies.get(kind) for x in outcomes]
            )
    table.add_row("requests", *(f"{x.measurement.requests:,}" for x in outcomes))
    table.add_row("answered in time", *(f"{x.measurement.in_time:,}" for x in outcomes))
    if any(x.measurement.late for x in outcomes):
        table.add_row("answered late", *(f"{x.measurement.late:,}" for x in outcomes))
    for code in sorted({code for x in outcomes for code in x.measurement.errors}):
        table.add_row(code, *(f"{x.measurement.errors[code]:,}" for x in outcomes))
    if any(x.measurement.held_back for x in outcomes):
        table.add_row("of these held back", *(f"{x.measurement.held_back:,}" for x in outcomes))
    return table


def _add_latencies(table: Table, prefix: str, found: Sequence[Latencies | None]) -> None:
    present = [None if x is None or not len(x) else x for x in found]
    shares = [None if x is None else x.percentiles(_SHOWN) for x in present]
    _add_row(table, f"{prefix}mean", [None if x is None else x.mean for x in present], as_ms)
    for share in _SHOWN:
        values = [None if x is None else x[share] for x in shares]
        _add_row(table, f"{prefix}p{share:g}", values, as_ms)
    _add_row(table, f"{prefix}largest", [None if x is None else x.maximum for x in present], as_ms)


def _add_row(table: Table, name: str, values: Sequence[float | None], form: Any) -> None:
    cells = ["" if value is None else form(value) for value in values]
    if len(values) == 2:
        first, second = values
        cells.append(f"{second / first:.2f}" if first and second is not None else "")
    table.add_row(name, *cells)


def as_ms(seconds: float) -> str:
    """Write a time in milliseconds."""
    return f"{1000 * seconds:.2f} ms"


def warn(console: Console, outcome: Outcome) -> None:
    """Say where the generator itself was late."""
    overall, delays = outcome.measurement.overall, outcome.measurement.delays
    if not len(overall):
        return
    late, median = delays.percentiles([99.0])[99.0], overall.percentiles([50.0])[50.0]
    if late > _LATE_SHARE * median:
        console.print(
            f"{outcome.target.name}: this program was itself up to {as_ms(late)} late in 99 % of "
            "the requests, which their latencies include; give it a processor of its own, or "
            "a lower rate",
            style="yellow",
        )


def record(outcome: Outcome, options: Options) -> dict[str, Any]:
    """Return an outcome for JSON."""
    measurement = outcome.measurement
    found: dict[str, Any] = {
        "address": outcome.target.address,
        "protocol": outcome.target.protocol,
        "model": outcome.model,
        "loop": "closed" if options.rate is None and not options.find_rate else "open",
        "connections": options.connections,
        "seconds": measurement.seconds,
        "requests": measurement.requests,
        "completed": measurement.completed,
        "answered_in_time": measurement.in_time,
        "answered_late": measurement.late,
        "rate": measurement.rate,
        "errors": dict(sorted(measurement.errors.items())),
        "held_back": measurement.held_back,
        "latency_ms": _latency_record(measurement.overall),
        "kinds": {
            kind: _latency_record(latencies) for kind, latencies in measurement.latencies.items()
        },
        "generator_delay_ms": _latency_record(measurement.delays),
    }
    if options.find_rate:
        found["offered_rate"] = None if outcome.found is None else outcome.found.rate
        found["objective_p99_ms"] = options.p99
        found["steps"] = [
            {
                "rate": step.rate,
                "holds": step.holds,
                "errors": step.measurement.errors.total(),
                "latency_ms": _latency_record(step.measurement.overall),
            }
            for step in outcome.steps
        ]
    elif options.rate is not None:
        found["offered_rate"] = options.rate
    else:
        found["concurrency"] = options.concurrency
    return found


def _latency_record(latencies: Latencies) -> dict[str, float] | None:
    if not len(latencies):
        return None
    found = latencies.percentiles(PERCENTILES)
    return {
        "count": len(latencies),
        "mean": 1000 * latencies.mean,
        "minimum": 1000 * latencies.minimum,
        **{f"p{share:g}": 1000 * seconds for share, seconds in found.items()},
        "maximum": 1000 * latencies.maximum,
    }
