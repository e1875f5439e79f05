"""`foveate load`: puts a server under load and measures it."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
from rich.console import Console

from foveate_client._exceptions import FoveateError, os_reason
from foveate_client._throttle import Throttling
from foveate_client._transports.channel import PLAINTEXT
from foveate_client.batch.sources import Passed
from foveate_client.commands._load_report import (
    OIP,
    Options,
    Outcome,
    Target,
    as_ms,
    curves,
    record,
    table_of,
    warn,
)
from foveate_client.commands._options import parse, parser_of
from foveate_client.commands._shared import (
    complain,
    connection_errors,
    connection_options,
    describe,
)
from foveate_client.load.driver import Driver, connect
from foveate_client.load.plot import save_plot
from foveate_client.load.recorder import Measurement
from foveate_client.load.search import Objective, Step, find_rate
from foveate_client.load.workload import (
    Mix,
    foveate_workload,
    oip_workload,
    read_pictures,
)

_START_RATE = 10.0
_READY_SECONDS = 10.0


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand and return its exit code."""
    parser = parser_of(
        Options,
        prog="foveate load",
        description="Put a server under load and measure its latencies and its throughput.",
        epilog="example: foveate load photos --address localhost:50051 --concurrency 32",
    )
    options = parse(parser, Options, arguments)
    _require_sense(parser, options)
    console = Console(stderr=True, highlight=False)
    try:
        with connection_errors():
            targets = _targets(options)
        outcomes = asyncio.run(_measure(targets, options, console))
        if options.plot is not None:
            save_plot(options.plot, curves(outcomes))
    except FoveateError as error:
        complain(parser, describe(error))
        return 1
    except grpc.aio.AioRpcError as error:
        complain(parser, f"{error.code().name}: {error.details()}")
        return 1
    except OSError as error:
        complain(parser, os_reason(error))
        return 1
    if options.json:
        print(json.dumps({"targets": [record(outcome, options) for outcome in outcomes]}))
    else:
        Console(highlight=False).print(table_of(outcomes))
    for outcome in outcomes:
        warn(console, outcome)
    unmet = options.find_rate and any(outcome.found is None for outcome in outcomes)
    unanswered = any(not outcome.measurement.completed for outcome in outcomes)
    return 1 if unmet or unanswered else 0


def _require_sense(parser: argparse.ArgumentParser, options: Options) -> None:
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
    if options.version and (OIP in protocols or options.compare is not None):
        parser.error("--version needs --protocol foveate, and not --compare")
    if options.compare is None and (options.compare_protocol or options.compare_model):
        parser.error("--compare-protocol and --compare-model need --compare")


def _targets(options: Options) -> list[Target]:
    """Return the servers to drive. Raises ValueError and OSError, as `connection_options` does."""
    first = Target(
        address=options.address,
        protocol=options.protocol,
        model=options.model,
        credentials=connection_options(options).get("credentials", PLAINTEXT),
    )
    first.credentials.check(first.address)
    if options.compare is None:
        return [first]
    # Without credentials: those of one server are not sent to another.
    second = Target(
        address=options.compare,
        protocol=options.compare_protocol or options.protocol,
        model=options.model if options.compare_model is None else options.compare_model,
    )
    second.credentials.check(second.address)
    return [first, second]


async def _measure(targets: Sequence[Target], options: Options, console: Console) -> list[Outcome]:
    """Measure the targets, in turn and `--rounds` times where there are two."""
    passed = Passed()
    pictures = read_pictures(options.images, passed)
    if passed.counts:
        console.print(f"passed over: {passed}", style="dim", soft_wrap=True)
    async with AsyncExitStack() as stack:
        driven = [
            await stack.enter_async_context(_driving(target, pictures, options))
            for target in targets
        ]
        rounds = options.rounds if len(driven) > 1 and not options.find_rate else 1
        for number in range(rounds):
            for driver, outcome in driven:
                if options.find_rate and options.p99 is not None:
                    objective = Objective(p99=options.p99 / 1000)
                    await _search(driver, outcome, objective, options, console)
                    continue
                if rounds > 1:
                    progress = f"{outcome.target.name}, round {number + 1} of {rounds}"
                    console.print(progress, style="dim")
                outcome.measurement.merge(await _one(driver, options))
    return [outcome for _, outcome in driven]


@asynccontextmanager
async def _driving(
    target: Target, pictures: Sequence[bytes], options: Options
) -> AsyncIterator[tuple[Driver, Outcome]]:
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
                version=options.version,
                timeout=options.timeout,
            )
        driver = Driver(channels, workload, timeout=options.timeout, seed=options.seed)
        yield driver, Outcome(target=target, model=workload.model)


async def _one(driver: Driver, options: Options) -> Measurement:
    seconds, warmup = options.duration, options.warmup
    if options.rate is not None:
        throttling = Throttling() if options.throttle else None
        return await driver.open(
            options.rate, seconds=seconds, warmup=warmup, throttling=throttling
        )
    return await driver.closed(options.concurrency, seconds=seconds, warmup=warmup)


async def _search(
    driver: Driver, outcome: Outcome, objective: Objective, options: Options, console: Console
) -> None:
    async def measure(rate: float) -> Measurement:
        return await driver.open(rate, seconds=options.duration, warmup=options.warmup)

    def note(step: Step) -> None:
        outcome.steps.append(step)
        p99 = step.measurement.overall.percentiles([99.0]).get(99.0)
        console.print(
            f"{outcome.target.name}: {step.rate:.1f} requests/s, p99 "
            f"{'none' if p99 is None else as_ms(p99)}, errors {step.measurement.error_share:.2%}: "
            f"{'held' if step.holds else 'broken'}",
            style="dim",
        )

    outcome.found = await find_rate(
        measure, objective, start=options.rate or _START_RATE, note=note
    )
    if outcome.found is not None:
        outcome.measurement = outcome.found.measurement
