"""Connections that say nothing keep neither probes out nor those who are connected."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http import HTTPStatus

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub

from ...conftest import TRANSPORTS
from ...waiting import wait_until
from .conftest import Server, Start, red

MOST = 40


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(start: Start) -> Server:
    return start("--max-connections", MOST, "--metrics-address", "127.0.0.1:0")


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def is_open(one: socket.socket) -> bool:
    """Whether the server keeps a connection: nothing has ended it yet."""
    one.setblocking(False)
    try:
        while one.recv(4096):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def test_idle_connections_are_bounded_and_a_client_that_is_connected_is_served(
    server: Server, sockets: ExitStack, transport: str
) -> None:
    host, _, port = server.address.rpartition(":")
    with server.channel() as honest:
        stub = ClassifierServiceStub(honest)
        stub.Classify(red(), timeout=60)
        idle = []
        for _ in range(3 * MOST):
            one = sockets.enter_context(closing(socket.create_connection((host, int(port)))))
            # A connection that was refused may be gone by then.
            try:
                one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            except OSError:
                continue
            idle.append(one)
        assert server.get("/healthz")[0] is HTTPStatus.OK
        for _ in range(10):
            stub.Classify(red(), timeout=60)
        # The honest client has one. Of one address http2 keeps half of the places.
        most = (MOST if transport == "grpcio" else MOST // 2) - 1
        wait_until(lambda: 0 < sum(map(is_open, idle)) <= most)
    if transport == "http2":
        with server.channel() as newcomer:
            assert HealthStub(newcomer).Check(HealthCheckRequest(), timeout=60, wait_for_ready=True)
    else:
        for one in idle:
            one.close()
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.address, options) as newcomer:
            grpc.channel_ready_future(newcomer).result(timeout=60)
