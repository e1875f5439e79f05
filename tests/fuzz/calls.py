"""Every RPC of every service of a real server, with messages that are changed at random.

    python -m tests.fuzz.calls REPOSITORY CALLS SECONDS SEED TRANSPORT

A finding is a status that means a fault of the server, a call that is not answered, an
honest call that is answered otherwise than before, memory that grows, or a server that ends.
"""

import asyncio
import io
import itertools
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import psutil
from benchmarks.server import serving
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from PIL import Image
from skimage import data

from foveate.inference import open_inference_pb2
from foveate.v1 import classifier_service_pb2, repository_service_pb2
from foveate_client import Client

from .mutate import Mutator
from .pictures import examples

FILES = (
    classifier_service_pb2,
    repository_service_pb2,
    open_inference_pb2,
    health_pb2,
    reflection_pb2,
    channelz_pb2,
)
AT_ONCE = 16
DEADLINE_SECONDS = 10.0
GROWN_MEBIBYTES = 256
HONEST_EVERY = 500
FAULTS = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
"""Statuses that no request may get: one is a handler's exception, the other is never sent."""

WATCHES = frozenset({"/grpc.health.v1.Health/Watch"})
"""Calls that last until the client ends them."""


@dataclass(frozen=True)
class Method:
    """A method of a service, called with bytes, so that they need be no message at all."""

    path: str
    descriptor: MethodDescriptor

    @property
    def request_class(self) -> type[Message]:
        return message_factory.GetMessageClass(self.descriptor.input_type)

    def parses(self, request: bytes) -> bool:
        """Return whether bytes are a message of this method."""
        try:
            self.request_class().ParseFromString(request)
        except DecodeError:
            return False
        return True

    async def call(self, channel: grpc.aio.Channel, requests: list[bytes]) -> grpc.StatusCode:
        """Send the requests, read all answers, and return the status."""
        streams = self.descriptor.client_streaming, self.descriptor.server_streaming
        kind = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
            (True, True): channel.stream_stream,
        }[streams]
        sent: Any = _each(requests) if streams[0] else requests[0]
        seconds = 0.05 if self.path in WATCHES else DEADLINE_SECONDS
        call = kind(self.path)(sent, timeout=seconds)
        try:
            if streams[1]:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


async def _each(requests: list[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


def methods() -> list[Method]:
    """Return the methods of all services, as their descriptors name them."""
    return [
        Method(f"/{service.full_name}/{method.name}", method)
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


class Fuzzer:
    """Sends changed messages to one server, and counts the statuses."""

    def __init__(self, seed: int, models: list[str]) -> None:
        self._random = Random(seed)  # noqa: S311 - repeatable
        words = [
            *models,
            "",
            "1",
            "image",
            "logits",
            "cam",
            "gradcam",
            "blocks.1",
            "UINT8",
            "BYTES",
        ]
        words += ["INT64", "class_ids", "top_k", "binary_data", "\x1b[31m", "é" * 40, "x" * 4000]
        words += ["foveate.v1.ClassifierService", "grpc.health.v1.Health", "../../etc/passwd"]
        blobs = [*examples(), b"", bytes(28 * 28), bytes(4), bytes(224 * 224 * 3)]
        self._mutator = Mutator(self._random, words, blobs)
        self._kept: dict[str, list[bytes]] = {}
        self._methods = methods()
        self.statuses: Counter[grpc.StatusCode] = Counter()

    async def one(self, channel: grpc.aio.Channel) -> None:
        """Make one call; raises AssertionError for a finding."""
        method = self._random.choice(self._methods)
        requests = [self._request(method) for _ in range(self._random.choice((1, 1, 2, 5)))]
        status = await method.call(channel, requests)
        self.statuses[status] += 1
        late = status == grpc.StatusCode.DEADLINE_EXCEEDED and method.path not in WATCHES
        # gRPC answers INTERNAL by itself to bytes that are no message.
        internal = status == grpc.StatusCode.INTERNAL and all(map(method.parses, requests))
        if status in FAULTS or internal or late:
            sizes = [len(request) for request in requests]
            start = b"|".join(request[:200] for request in requests)
            raise AssertionError(f"{method.path}: {status} for {sizes} bytes: {start.hex()}")
        if status == grpc.StatusCode.OK:
            kept = self._kept.setdefault(method.path, [])
            kept.append(requests[0])
            del kept[:-20]

    def _request(self, method: Method) -> bytes:
        """Return a new message, or a changed one of those that were answered."""
        message = method.request_class()
        kept = self._kept.get(method.path)
        if kept and self._random.random() < 0.7:
            try:
                message.ParseFromString(self._random.choice(kept))
            except DecodeError:
                message.Clear()
        self._mutator.change(message)
        content = message.SerializeToString()
        return self._mutator.bytes(content) if self._random.random() < 0.2 else content


def honest(client: Client, models: list[str]) -> list[tuple[str, float]]:
    """Return what each model says of one photograph, which no other call may change."""
    buffer = io.BytesIO()
    Image.fromarray(data.chelsea()).save(buffer, "PNG")
    answers = (client.classify(buffer.getvalue(), model=model, top_k=1) for model in models)
    return [(a.predictions[0].label, round(a.predictions[0].score, 3)) for a in answers]


async def run(address: str, fuzzer: Fuzzer, calls: int, seconds: float, models: list[str]) -> None:
    """Make so many calls (-1: no limit) for so many seconds (0: no limit)."""
    until = time.monotonic() + seconds if seconds else float("inf")
    numbers = itertools.count() if calls < 0 else iter(range(calls))
    with Client(address) as client:
        expected = await asyncio.to_thread(honest, client, models)

        async def work() -> None:
            async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
                for number in numbers:
                    if time.monotonic() > until:
                        return
                    await fuzzer.one(channel)
                    if number % HONEST_EVERY == 0:
                        assert await asyncio.to_thread(honest, client, models) == expected

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))


_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A connection each: `http2` ends one on which too many calls are cancelled or late.
    ("grpc.use_local_subchannel_pool", 1),
)


@contextmanager
def small_growth(process: psutil.Process) -> Iterator[None]:
    before = process.memory_info().rss
    yield
    grown = (process.memory_info().rss - before) >> 20
    assert grown <= GROWN_MEBIBYTES, f"the server grew by {grown} MiB"


def main() -> None:
    repository, calls, seconds, seed, transport = sys.argv[1:]
    models = sorted(path.name for path in Path(repository).iterdir() if path.is_dir())
    fuzzer = Fuzzer(int(seed), models)
    with serving(Path(repository), "--transport", transport) as server:
        with Client(server.address) as client:
            honest(client, models)  # what is warm has its memory
        with small_growth(server.process):
            asyncio.run(run(server.address, fuzzer, int(calls), float(seconds), models))
        assert server.process.is_running()
    for status, count in fuzzer.statuses.most_common():
        print(f"{status.name}: {count}", file=sys.stderr)
    print(f"stat::number_of_executed_units: {sum(fuzzer.statuses.values())}", file=sys.stderr)


if __name__ == "__main__":
    main()
