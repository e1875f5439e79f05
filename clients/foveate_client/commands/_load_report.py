"""The options and the report of `foveate load`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveate_client._connection import Credentials
from foveate_client._transports.channel import PLAINTEXT
from foveate_client.commands._numbers import above_zero, not_negative, positive, share
from foveate_client.commands._options import OptionGroup, SecurityOptions, argument, option
from foveate_client.load.recorder import PERCENTILES, Latencies, Measurement
from foveate_client.load.search import Step

_SHOWN = (50.0, 90.0, 95.0, 99.0, 99.9)
_LATE_SHARE = 0.1
"""The generator's own delay above which it warns, as a share of the median latency."""


FOVEATE, OIP = "foveate", "oip"
Protocol = Literal["foveate", "oip"]


_LOOP = OptionGroup(exclusive=True)


@dataclass(frozen=True, kw_only=True)
class Options(SecurityOptions):
    """The options of `foveate load`.

    Rates are in requests a second; `p99` is in milliseconds, and `duration`, `warmup` and
    `timeout` are in seconds.
    """

    images: tuple[Path, ...] = argument(
        "what to send: pictures, or folders, lists, shards and tables of them", metavar="IMAGE"
    )
    address: str = option("the server", metavar="HOST:PORT")
    model: str = option("the model to ask", metavar="NAME", default="")
    version: str = option(
        "its version (default: the default one, as it changes)", metavar="V", default=""
    )
    concurrency: int = option(
        "closed loop: keep this many requests going (default: %(default)s)",
        group=_LOOP,
        metavar="N",
        type=positive,
        default=1,
    )
    rate: float | None = option(
        "open loop: requests a second, arriving as a Poisson process; with --find-rate, "
        "the first rate tried",
        group=_LOOP,
        metavar="R",
        type=above_zero,
    )
    find_rate: bool = option("find the highest rate of the open loop that keeps --p99")
    throttle: bool = option(
        "hold requests back from a server that refuses, as a client with Throttling does"
    )
    p99: float | None = option(
        "the objective: 99 %% are answered within", metavar="MS", type=above_zero
    )
    duration: float = option(
        "how long to measure, for each rate and round (default: %(default)g)",
        metavar="SECONDS",
        type=above_zero,
        default=10.0,
    )
    warmup: float = option(
        "how long to send before that (default: %(default)g)",
        metavar="SECONDS",
        type=not_negative,
        default=2.0,
    )
    connections: int = option(
        "connections, used in turn (default: %(default)s)", metavar="N", type=positive, default=1
    )
    timeout: float = option(
        "the deadline of each request (default: %(default)g)",
        metavar="SECONDS",
        type=above_zero,
        default=30.0,
    )
    cam_share: float = option(
        "the share of requests, from 0 to 1, that ask for an activation map",
        metavar="SHARE",
        type=share,
        default=0.0,
    )
    feature_map_share: float = option(
        "the share of requests, from 0 to 1, that ask for a feature map",
        metavar="SHARE",
        type=share,
        default=0.0,
    )
    feature_map_layer: str = option("its layer (default: the last)", metavar="LAYER", default="")
    protocol: Protocol = option(
        "oip is the Open Inference Protocol of other servers (default: %(default)s)",
        default=FOVEATE,
    )
    output: str = option("oip: the output to ask for (default: first)", metavar="NAME", default="")
    compare: str | None = option(
        "drive this server as well, in turn; in the clear and without a token", metavar="HOST:PORT"
    )
    compare_protocol: Protocol | None = option("its protocol (default: the same)")
    compare_model: str | None = option("its model (default: the same)", metavar="NAME")
    rounds: int = option(
        "with --compare, how often each is measured (default: %(default)s)",
        metavar="N",
        type=positive,
        default=3,
    )
    seed: int = option("of the arrivals and the mix", metavar="N", default=0)
    plot: Path | None = option("draw the latencies: .png, .svg or .pdf", metavar="FILE")
    json: bool = option("print JSON")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server to drive."""

    address: str
    protocol: str
    model: str
    credentials: Credentials = PLAINTEXT

    @property
    def name(self) -> str:
        """Its name in a report of several."""
        return f"{self.address} ({self.protocol})"


@dataclass(kw_only=True)
class Outcome:
    """The measurement of one target; `steps` and `found` are those of a search."""

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
    for percent in _SHOWN:
        values = [None if x is None else x[percent] for x in shares]
        _add_row(table, f"{prefix}p{percent:g}", values, as_ms)
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
    """Print a warning where the generator itself was late."""
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
