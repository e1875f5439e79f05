"""Sends requests at their times, and measures their latencies.

In the closed loop each of a fixed number of callers waits for an answer before the next
request. A slow server gets fewer requests, so that its latencies are those of a queue of
that length. In the open loop requests are due at the times of a Poisson process, as from
many independent callers, and a latency is measured from the time that the request was
due: requests that wait for a stalled server count with their whole wait (coordinated
omission, G. Tene).
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import cycle
from typing import TypeAlias

import grpc.aio

from foveate.status import StatusError
from foveate_client._connection import Credentials, Retries
from foveate_client._throttle import Throttle, Throttling
from foveate_client._transports.channel import PLAINTEXT, Caller, model_headers
from foveate_client._transports.status import throttled
from foveate_client.load.recorder import Measurement
from foveate_client.load.workload import Workload

Call: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"

# Sleeping on an event loop ends up to a millisecond late, the resolution of its poll.
_AWAKE_SECONDS = 0.0012


@asynccontextmanager
async def connect(
    address: str, connections: int, credentials: Credentials = PLAINTEXT
) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Open channels with a connection each and without retries, and close them at the end.

    Raises ValueError where a token would be sent unencrypted to another machine, and
    OSError where a certificate cannot be read.
    """
    tls, options = Caller(credentials).prepare(address, Retries(attempts=1))
    # Channels share the connections to one address otherwise.
    options.append(("grpc.use_local_subchannel_pool", 1))
    options.append(("grpc.enable_retries", 0))
    if credentials.token is not None:
        tls = _with_token(tls, credentials, address)
    channels = [
        grpc.aio.insecure_channel(address, options)
        if tls is None
        else grpc.aio.secure_channel(address, tls, options)
        for _ in range(connections)
    ]
    try:
        yield channels
    finally:
        for channel in channels:
            await channel.close()


def _with_token(
    tls: grpc.ChannelCredentials | None, credentials: Credentials, address: str
) -> grpc.ChannelCredentials:
    if tls is None:
        # Unencrypted, but gRPC then checks that the other end is this machine.
        kind = grpc.LocalConnectionType
        tls = grpc.local_channel_credentials(
            kind.UDS if address.startswith("unix") else kind.LOCAL_TCP
        )
    token = (credentials.authorization() or "").removeprefix("Bearer ")
    return grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(token))


class Driver:
    """Sends a workload over `channels` in turn; `timeout` is each call's deadline in seconds.

    Answers are taken as bytes and not read. Runs with the same seed send the
    same requests at the same times.
    """

    def __init__(
        self,
        channels: list[grpc.aio.Channel],
        workload: Workload,
        *,
        timeout: float,
        seed: int = 0,
    ) -> None:
        self._calls: list[Call] = [channel.unary_unary(workload.method) for channel in channels]
        self._workload = workload
        self._timeout = timeout
        self._seed = seed
        self._runs = 0

    async def closed(self, concurrency: int, *, seconds: float, warmup: float) -> Measurement:
        """Keep `concurrency` requests going, for `seconds` after `warmup` seconds."""
        run = self._run(seconds, warmup)

        async def caller(call: Call) -> None:
            while (now := time.perf_counter()) < run.end:
                await run.request(call, due=now)

        calls = cycle(self._calls)
        async with asyncio.TaskGroup() as callers:
            for _ in range(concurrency):
                callers.create_task(caller(next(calls)))
        return run.measurement

    async def open(
        self, rate: float, *, seconds: float, warmup: float, throttling: Throttling | None = None
    ) -> Measurement:
        """Send `rate` requests a second on average, for `seconds` after `warmup` seconds.

        With `throttling`, some of them are held back from a server that refuses.
        """
        run = self._run(seconds, warmup, throttling)
        calls = cycle(self._calls)
        async with asyncio.TaskGroup() as requests:
            for due in poisson_times(rate, run.begin, run.end, random.Random(run.seed)):  # noqa: S311
                await _until(due)
                requests.create_task(run.request(next(calls), due=due))
        return run.measurement

    def _run(self, seconds: float, warmup: float, throttling: Throttling | None = None) -> "_Run":
        # Each run goes on with other requests and other times.
        self._runs += 1
        seed = self._seed + self._runs - 1
        throttle = None if throttling is None else Throttle(throttling)
        return _Run(
            self._workload,
            seconds=seconds,
            warmup=warmup,
            timeout=self._timeout,
            seed=seed,
            throttle=throttle,
        )


class _Run:
    """One run: its times, its requests, and its measurement."""

    def __init__(
        self,
        workload: Workload,
        *,
        seconds: float,
        warmup: float,
        timeout: float,
        seed: int,
        throttle: Throttle | None,
    ) -> None:
        self.seed = seed
        self.begin = time.perf_counter()
        self.measured_from = self.begin + warmup
        self.end = self.measured_from + seconds
        self.measurement = Measurement(seconds=seconds)
        self._requests = workload.sequence(seed)
        self._timeout = timeout
        self._throttle = throttle
        self._metadata = tuple(model_headers(workload.model).items())

    async def request(self, call: Call, *, due: float) -> None:
        """Send the next request and record its latency, from `due` on."""
        kind, request = next(self._requests)
        started = time.perf_counter()
        error, held_back = None, False
        try:
            with throttled(self._throttle):
                await call(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as failure:
            error = failure.code().name
        except StatusError:
            error, held_back = grpc.StatusCode.RESOURCE_EXHAUSTED.name, True
        ended = time.perf_counter()
        if error is None and self.measured_from <= ended < self.end:
            self.measurement.completed += 1
        if due < self.measured_from:
            return
        self.measurement.delays.record(started - due)
        if error is None:
            self.measurement.record(kind, ended - due)
            self.measurement.late += ended >= self.end
        else:
            self.measurement.errors[error] += 1
            self.measurement.held_back += held_back


def poisson_times(rate: float, begin: float, end: float, chance: random.Random) -> Iterator[float]:
    """Yield the times from `begin` to `end` of a Poisson process of `rate` events a second."""
    due = begin + chance.expovariate(rate)
    while due < end:
        yield due
        due += chance.expovariate(rate)


async def _until(due: float) -> None:
    # There is no event to wait for: the time itself is what is awaited.
    while (left := due - time.perf_counter()) > 0:  # noqa: ASYNC110
        await asyncio.sleep(max(0.0, left - _AWAKE_SECONDS))
