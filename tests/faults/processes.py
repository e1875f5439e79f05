"""Processes and engines that end, hang, or answer rubbish."""

import signal

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from ..colours import relist
from ..serve.operations.conftest import trap
from ..waiting import wait_until
from .bench import Bench, Seen, fixed_address, seen

GONE = frozenset({"UNAVAILABLE"})
LATE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})


def kill_server(bench: Bench) -> Seen:
    """kill -9 of the server, and a new one on its port"""
    address = fixed_address()
    with bench.serving(address=address) as server, bench.asking(address) as honest:
        honest.breaks()
        server.kill()
        with bench.serving(address=address):
            honest.settle()
            return seen(honest, "calls in flight end at once", allowed=GONE)


def kill_worker(bench: Bench) -> Seen:
    """kill -9 of one of two workers"""
    with bench.serving("--workers", "2") as server, bench.asking(server.address) as honest:
        (victim, *_) = before = server.children()
        honest.breaks()
        victim.kill()
        wait_until(lambda: len(server.children()) == len(before) and not victim.is_running())
        honest.settle()
        return seen(honest, "the supervisor starts another", allowed=GONE)


def kill_supervisor(bench: Bench) -> Seen:
    """kill -9 of the supervisor of two workers, and a new server on its port"""
    address = fixed_address()
    with (
        bench.serving("--workers", "2", address=address) as server,
        bench.asking(address) as honest,
    ):
        workers = server.children()
        honest.breaks()
        server.kill()
        wait_until(lambda: not any(map(_lives, workers)), told=lambda: "workers go on alone")
        with bench.serving("--workers", "2", address=address):
            honest.settle()
            return seen(honest, "the workers end with it", allowed=LATE)


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def stop_server(bench: Bench) -> Seen:
    """SIGTERM while calls are in flight, and a new server on its port"""
    address = fixed_address()
    with bench.serving(address=address) as server, bench.asking(address) as honest:
        honest.breaks()
        assert server.stop() == 0
        with bench.serving(address=address):
            honest.settle()
            # A call that crosses the GOAWAY may be cancelled: see docs/serving/transport.md.
            return seen(
                honest, "calls in flight are answered", allowed=GONE | frozenset({"CANCELLED"})
            )


def pause_worker(bench: Bench) -> Seen:
    """SIGSTOP of one of two workers for three seconds"""
    with bench.serving("--workers", "2") as server, bench.asking(server.address) as honest:
        victim = server.children()[0]
        honest.breaks()
        victim.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: len(honest.codes()) > 0)
            honest.hold(3.0)
        finally:
            victim.send_signal(signal.SIGCONT)
        honest.settle()
        return seen(honest, "calls wait for it, or reach their deadline", allowed=LATE)


def hung_engine(bench: Bench) -> Seen:
    """an engine that does not return, in one of two workers"""
    path = bench.bundle
    graph = onnx.load(path / "model.onnx")
    cast = helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT)
    graph.graph.node.insert(0, cast)
    (path / "model.onnx").write_bytes(trap(graph).SerializeToString())
    relist(path, "model.onnx")
    arguments = ("--workers", "2", "--engine-timeout", "2", "--backend", "onnxruntime")
    with bench.serving(*arguments) as server, bench.asking(server.address, attempts=4) as honest:
        honest.breaks()
        honest.ask_unlucky()
        honest.settle()
        return seen(
            honest,
            "the worker is replaced; those in its batch get INTERNAL",
            allowed=LATE | frozenset({"INTERNAL", "FAILED_PRECONDITION"}),
        )


def rubbish(bench: Bench) -> Seen:
    """a version whose logits are not numbers, put beside the one that serves"""
    with (
        bench.serving("--repository-mode", "poll", "--poll-interval", "0.2") as server,
        bench.asking(server.address) as honest,
    ):
        honest.breaks()
        _add_rubbish(bench, "2")
        wait_until(
            lambda: "version 2" in server.log.read_text(encoding="utf-8"),
            told=lambda: server.log.read_text(encoding="utf-8"),
        )
        honest.settle()
        return seen(honest, "it is not loaded; the old version serves", allowed=frozenset())


def _add_rubbish(bench: Bench, version: str) -> None:
    graph = onnx.load(bench.bundle / "model.onnx")
    bias = next(t for t in graph.graph.initializer if t.dims == [1000])
    bias.CopyFrom(numpy_helper.from_array(np.full(1000, np.nan, np.float32), bias.name))
    bench.add_version(version, {"model.onnx": graph.SerializeToString()})


FAULTS = (
    kill_server,
    stop_server,
    kill_worker,
    kill_supervisor,
    pause_worker,
    hung_engine,
    rubbish,
)
