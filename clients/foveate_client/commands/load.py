"""`foveate load`: puts a server under load and measures it."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveate_client._connection import Credentials
from foveate_client._exceptions import FoveateError
from foveate_client._grpc import PLAINTEXT
from foveate_client._throttle import Throttling
from foveate_client.commands._shared import (
    add_security_arguments,
    complain,
    connection_options,
    describe,
)
from foveate_client.load.driver import Driver, connect
from foveate_client.load.plot import save_plot
from foveate_client.load.recorder import PERCENTILES, Latencies, Measurement
from foveate_client.load.search import Objective, Step, find_rate
from foveate_client.load.workload import (
    Mix,
    foveate_workload,
    oip_workload,
    read_pictures,
)

FOVEATE, OIP = "foveate", "oip"

_SHOWN = (50.0, 90.0, 95.0, 99.0, 99.9)
_LATE_SHARE = 0.1
"""The generator's own delay that is worth a word, as a share of the median latency."""
_START_RATE = 10.0
_READY_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class _Target:
    """A server to drive."""

    address: str
    protocol: str
    model: str
    credentials: Credentials = PLAINTEXT

    @property
    def name(self) -> str:
        return f"{self.address} ({self.protocol})"


@dataclass(kw_only=True)
class _Outcome:
    """What was measured of one target; `steps` and `found` are those of a search."""

    target: _Target
    model: str
    measurement: Measurement = field(default_factory=Measurement)
    steps: list[Step] = field(default_factory=list)
    found: Step | None = None


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _require_sense(parser, options)
    try:
        targets = _targets(options)
    except ValueError as error:
        complain(parser, str(error))
        return 1
    except OSError as error:
        complain(parser, f"cannot read {error.filename}: {error.strerror}")
        return 1
    console = Console(stderr=True, highlight=False)
    try:
        outcomes = asyncio.run(_measure(targets, options, console))
        if options.plot is not None:
            save_plot(options.plot, _curves(outcomes))
    except FoveateError as error:
        complain(parser, describe(error))
        return 1
    except grpc.aio.AioRpcError as error:
        complain(parser, f"{error.code().name}: {error.details()}")
        return 1
    except OSError as error:
        place = "" if error.filename is None else f": {error.filename}"
        complain(parser, f"{error.strerror}{place}")
        return 1
    if options.json:
        print(json.dumps({"targets": [_record(outcome, options) for outcome in outcomes]}))
    else:
        Console(highlight=False).print(_table(outcomes))
    for outcome in outcomes:
        _warn(console, outcome)
    unmet = options.find_rate and any(outcome.found is None for outcome in outcomes)
    unanswered = any(not outcome.measurement.completed for outcome in outcomes)
    return 1 if unmet or unanswered else 0


def _require_sense(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.find_rate and options.p99 is None:
        parser.error("--find-rate needs --p99, the objective")
    if options.p99 is not None and not options.find_rate:
        parser.error("--p99 needs --find-rate")
    mixed = options.cam_share + options.feature_map_share
    if mixed > 1:
        parser.error(f"--cam-share and --feature-map-share add up to {mixed:g}; the limit is 1")
    protocols = {options.protocol, options.compare_protocol or options.protocol}
    if mixed and OIP in protocols:
        parser.error("the Open Inference Protocol has no maps: --cam-share needs foveate alone")
    if options.protocol == OIP and not options.model:
        parser.error("--protocol oip needs --model")
    if options.throttle and (options.rate is None or options.find_rate):
        parser.error(
            "--throttle needs --rate, and not --find-rate: it is for more than is answered"
        )
    if options.compare is None and (options.compare_protocol or options.compare_model):
        parser.error("--compare-protocol and --compare-model need --compare")


def _targets(options: argparse.Namespace) -> list[_Target]:
    """Return the servers to drive. Raises ValueError and OSError, as `connection_options` does."""
    first = _Target(
        address=options.address,
        protocol=options.protocol,
        model=options.model,
        credentials=connection_options(options).get("credentials", PLAINTEXT),
    )
    first.credentials.check(first.address)
    if options.compare is None:
        return [first]
    # Without credentials: those of one server are not shown to another.
    second = _Target(
        address=options.compare,
        protocol=options.compare_protocol or options.protocol,
        model=options.model if options.compare_model is None else options.compare_model,
    )
    return [first, second]


async def _measure(
    targets: Sequence[_Target], options: argparse.Namespace, console: Console
) -> list[_Outcome]:
    """Measure the targets, in turn and `--rounds` times where there are two."""
    pictures = read_pictures(options.images)
    async with AsyncExitStack() as stack:
        driven = [
            await stack.enter_async_context(_driving(target, pictures, options))
            for target in targets
        ]
        rounds = options.rounds if len(driven) > 1 and not options.find_rate else 1
        for number in range(rounds):
            for driver, outcome in driven:
                if options.find_rate:
                    await _search(driver, outcome, options, console)
                    continue
                if rounds > 1:
                    progress = f"{outcome.target.name}, round {number + 1} of {rounds}"
                    console.print(progress, style="dim")
                outcome.measurement.merge(await _one(driver, options))
    return [outcome for _, outcome in driven]


@asynccontextmanager
async def _driving(
    target: _Target, pictures: Sequence[bytes], options: argparse.Namespace
) -> AsyncIterator[tuple[Driver, _Outcome]]:
    async with connect(target.address, options.connections, target.credentials) as channels:
        for channel in channels:
            try:
                async with asyncio.timeout(_READY_SECONDS):
                    await channel.channel_ready()
            except TimeoutError as error:
                raise ConnectionError(
                    0, f"no connection within {_READY_SECONDS:g} s", target.address
                ) from error
        if target.protocol == OIP:
            workload = await oip_workload(
                channels[0],
                pictures,
                model=target.model,
                output=options.output,
                timeout=options.timeout,
            )
        else:
            workload = await foveate_workload(
                channels[0],
                pictures,
                Mix(
                    cam=options.cam_share,
                    feature_maps=options.feature_map_share,
                    layer=options.feature_map_layer,
                ),
                model=target.model,
                timeout=options.timeout,
            )
        driver = Driver(channels, workload, timeout=options.timeout, seed=options.seed)
        yield driver, _Outcome(target=target, model=workload.model)


async def _one(driver: Driver, options: argparse.Namespace) -> Measurement:
    seconds, warmup = options.duration, options.warmup
    if options.rate is not None:
        throttling = Throttling() if options.throttle else None
        return await driver.open(
            options.rate, seconds=seconds, warmup=warmup, throttling=throttling
        )
    return await driver.closed(options.concurrency, seconds=seconds, warmup=warmup)


async def _search(
    driver: Driver, outcome: _Outcome, options: argparse.Namespace, console: Console
) -> None:
    async def measure(rate: float) -> Measurement:
        return await driver.open(rate, seconds=options.duration, warmup=options.warmup)

    def note(step: Step) -> None:
        outcome.steps.append(step)
        p99 = step.measurement.overall.percentiles([99.0]).get(99.0)
        console.print(
            f"{outcome.target.name}: {step.rate:.1f} requests/s, p99 "
            f"{'none' if p99 is None else _ms(p99)}, errors {step.measurement.error_share:.2%}: "
            f"{'held' if step.holds else 'broken'}",
            style="dim",
        )

    objective = Objective(p99=options.p99 / 1000)
    outcome.found = await find_rate(
        measure, objective, start=options.rate or _START_RATE, note=note
    )
    if outcome.found is not None:
        outcome.measurement = outcome.found.measurement


def _curves(outcomes: Sequence[_Outcome]) -> dict[str, Latencies]:
    several = len(outcomes) > 1
    return {
        f"{outcome.target.name}, {kind}" if several else kind: latencies
        for outcome in outcomes
        for kind, latencies in outcome.measurement.latencies.items()
    }


def _table(outcomes: Sequence[_Outcome]) -> Table:
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
    for code in sorted({code for x in outcomes for code in x.measurement.errors}):
        table.add_row(code, *(f"{x.measurement.errors[code]:,}" for x in outcomes))
    if any(x.measurement.held_back for x in outcomes):
        table.add_row("of these held back", *(f"{x.measurement.held_back:,}" for x in outcomes))
    return table


def _add_latencies(table: Table, prefix: str, found: Sequence[Latencies | None]) -> None:
    present = [None if x is None or not len(x) else x for x in found]
    shares = [None if x is None else x.percentiles(_SHOWN) for x in present]
    _add_row(table, f"{prefix}mean", [None if x is None else x.mean for x in present], _ms)
    for share in _SHOWN:
        values = [None if x is None else x[share] for x in shares]
        _add_row(table, f"{prefix}p{share:g}", values, _ms)
    _add_row(table, f"{prefix}largest", [None if x is None else x.maximum for x in present], _ms)


def _add_row(table: Table, name: str, values: Sequence[float | None], form: Any) -> None:
    cells = ["" if value is None else form(value) for value in values]
    if len(values) == 2:
        first, second = values
        cells.append(f"{second / first:.2f}" if first and second is not None else "")
    table.add_row(name, *cells)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def _warn(console: Console, outcome: _Outcome) -> None:
    overall, delays = outcome.measurement.overall, outcome.measurement.delays
    if not len(overall):
        return
    late, median = delays.percentiles([99.0])[99.0], overall.percentiles([50.0])[50.0]
    if late > _LATE_SHARE * median:
        console.print(
            f"{outcome.target.name}: this program was itself up to {_ms(late)} late in 99 % of "
            "the requests, which their latencies include; give it a processor of its own, or "
            "a lower rate",
            style="yellow",
        )


def _record(outcome: _Outcome, options: argparse.Namespace) -> dict[str, Any]:
    measurement = outcome.measurement
    record: dict[str, Any] = {
        "address": outcome.target.address,
        "protocol": outcome.target.protocol,
        "model": outcome.model,
        "loop": "closed" if options.rate is None and not options.find_rate else "open",
        "connections": options.connections,
        "seconds": measurement.seconds,
        "requests": measurement.requests,
        "completed": measurement.completed,
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
        record["offered_rate"] = None if outcome.found is None else outcome.found.rate
        record["objective_p99_ms"] = options.p99
        record["steps"] = [
            {
                "rate": step.rate,
                "holds": step.holds,
                "errors": step.measurement.errors.total(),
                "latency_ms": _latency_record(step.measurement.overall),
            }
            for step in outcome.steps
        ]
    elif options.rate is not None:
        record["offered_rate"] = options.rate
    else:
        record["concurrency"] = options.concurrency
    return record


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="foveate load",
        description="Put a server under load and measure its latencies and its throughput.",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", type=Path, help="pictures to send, or folders of them"
    )
    parser.add_argument("--address", metavar="HOST:PORT", required=True, help="the server")
    parser.add_argument("--model", metavar="NAME", default="", help="the model to ask")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument(
        "--concurrency",
        metavar="N",
        type=_positive,
        default=1,
        help="closed loop: keep this many requests going (default: %(default)s)",
    )
    loop.add_argument(
        "--rate",
        metavar="R",
        type=_above_zero,
        help="open loop: requests a second, arriving as a Poisson process; with --find-rate, "
        "the first rate tried",
    )
    parser.add_argument(
        "--find-rate",
        action="store_true",
        help="find the highest rate of the open loop that keeps --p99",
    )
    parser.add_argument(
        "--throttle",
        action="store_true",
        help="hold requests back from a server that refuses, as a client with Throttling does",
    )
    parser.add_argument(
        "--p99", metavar="MS", type=_above_zero, help="the objective: 99 %% are answered within"
    )
    parser.add_argument(
        "--duration",
        metavar="SECONDS",
        type=_above_zero,
        default=10.0,
        help="how long to measure, for each rate and round (default: %(default)g)",
    )
    parser.add_argument(
        "--warmup",
        metavar="SECONDS",
        type=_not_negative,
        default=2.0,
        help="how long to send before that (default: %(default)g)",
    )
    parser.add_argument(
        "--connections",
        metavar="N",
        type=_positive,
        default=1,
        help="connections, used in turn (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_above_zero,
        default=30.0,
        help="the deadline of each request (default: %(default)g)",
    )
    parser.add_argument(
        "--cam-share",
        metavar="SHARE",
        type=_share,
        default=0.0,
        help="the share of requests, from 0 to 1, that ask for an activation map",
    )
    parser.add_argument(
        "--feature-map-share",
        metavar="SHARE",
        type=_share,
        default=0.0,
        help="the share of requests, from 0 to 1, that ask for a feature map",
    )
    parser.add_argument(
        "--feature-map-layer", metavar="LAYER", default="", help="its layer (default: the last)"
    )
    parser.add_argument(
        "--protocol",
        choices=(FOVEATE, OIP),
        default=FOVEATE,
        help="oip is the Open Inference Protocol of other servers (default: %(default)s)",
    )
    parser.add_argument(
        "--output", metavar="NAME", default="", help="oip: the output to ask for (default: first)"
    )
    parser.add_argument(
        "--compare",
        metavar="HOST:PORT",
        help="drive this server as well, in turn; in the clear and without a token",
    )
    parser.add_argument(
        "--compare-protocol", choices=(FOVEATE, OIP), help="its protocol (default: the same)"
    )
    parser.add_argument("--compare-model", metavar="NAME", help="its model (default: the same)")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=_positive,
        default=3,
        help="with --compare, how often each is measured (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the arrivals and the mix"
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=Path, help="draw the latencies: .png, .svg or .pdf"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_security_arguments(parser)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _above_zero(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return number


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must not be below 0, not {text}")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text}")
    return number
