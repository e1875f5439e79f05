"""Clients that vanish, never read, send half a message, or come all at once."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import psutil
from hpack import Encoder

from ..waiting import wait_until
from .bench import MODEL, Bench, Seen, Server, seen

_GROWN_BYTES = 256 << 20

FULL = frozenset({"RESOURCE_EXHAUSTED"})
"""What a client gets while others ask for more than can be done."""

_ASKING = """
import sys
from foveate_client import Client
from tests.faults.honest import pictures
with Client(sys.argv[1]) as client:
    images = pictures() * 1000
    print("ready", flush=True)
    for _ in client.classify_many(images, model=sys.argv[2], feature_maps=["blocks.0"]):
        pass
"""
"""A client that has large answers made, as many as it can."""


@contextmanager
def _small_growth(server: Server) -> Iterator[None]:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    yield
    grown = process.memory_info().rss - before
    assert grown <= _GROWN_BYTES, f"the server grew by {grown >> 20} MiB"


@contextmanager
def _crowd(server: Server, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start clients in processes of their own, and kill what is left of them."""
    command = [sys.executable, "-c", _ASKING, server.address, MODEL]
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            for _ in range(count)
        ]
        try:
            for process in crowd:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            yield crowd
        finally:
            for process in crowd:
                process.kill()


def vanishing_clients(bench: Bench) -> Seen:
    """four clients, killed in the midst of streams of large answers"""
    with bench.serving() as server, bench.asking(server.address) as honest:
        honest.breaks()
        with _small_growth(server), _crowd(server, 4):
            honest.hold(1.0)
        honest.settle()
        return seen(honest, "others are refused while the queue is full", allowed=FULL)


def clients_that_do_not_read(bench: Bench) -> Seen:
    """four clients that stop reading large answers, for four seconds"""
    with bench.serving() as server, bench.asking(server.address) as honest:
        honest.breaks()
        with _small_growth(server), _crowd(server, 4) as crowd:
            honest.hold(0.5)
            for process in crowd:
                os.kill(process.pid, signal.SIGSTOP)
            honest.hold(4.0)
        honest.settle()
        return seen(honest, "others are refused while the queue is full", allowed=FULL)


def half_messages(bench: Bench) -> Seen:
    """two hundred connections with half a message each, closed after two seconds"""
    with bench.serving() as server, bench.asking(server.address) as honest:
        honest.breaks()
        with _small_growth(server), ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(_half_a_message(server.address))
            honest.hold(2.0)
        honest.settle()
        return seen(honest, "no other client's call fails", allowed=frozenset())


def _half_a_message(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    headers = Encoder().encode(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/foveate.v1.ClassifierService/Classify"),
            (":authority", address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
    )
    begun = (1 << 20).to_bytes(4)
    connection = socket.create_connection((host, int(port)))
    connection.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + bytes(3)
        + b"\x04"
        + bytes(5)  # SETTINGS
        + len(headers).to_bytes(3)
        + b"\x01\x04"
        + (1).to_bytes(4)
        + headers
        + (4105).to_bytes(3)
        + b"\x00\x00"
        + (1).to_bytes(4)
        + b"\0"
        + begun
        + bytes(4100)
    )
    return connection


def reconnect_storm(bench: Bench) -> Seen:
    """five hundred clients that connect at once, three times"""
    with bench.serving() as server, bench.asking(server.address) as honest:
        process = psutil.Process(server.process.pid)
        files = process.num_fds()
        honest.breaks()
        for _ in range(3):
            with ExitStack() as stack:
                for _ in range(500):
                    options = [("grpc.use_local_subchannel_pool", 1)]
                    channel = grpc.insecure_channel(server.address, options)
                    stack.enter_context(channel)
                    channel.subscribe(lambda _: None, try_to_connect=True)
                honest.hold(1.0)
        wait_until(
            lambda: process.num_fds() <= files + 4,
            told=lambda: f"{process.num_fds()} files are open, {files} before",
        )
        honest.settle()
        return seen(honest, "no other client's call fails", allowed=frozenset())


FAULTS = (vanishing_clients, clients_that_do_not_read, half_messages, reconnect_storm)
