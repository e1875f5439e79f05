"""A real engine that did not return: its server says so, and a worker is replaced."""

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import grpc
import onnx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from foveate.v1.classifier_service_pb2 import ClassifyRequest, ListModelsRequest, RawImage
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub

from ...colours import relist
from ...waiting import wait_until
from .conftest import trap

SECONDS = "2"
MODEL = "foveate.v1.ClassifierService/colours"
UNLUCKY = ClassifyRequest(raw=RawImage(height=8, width=8, channels=3, data=bytes([13]) * 192))


@pytest.fixture
def trapped(write_bundle: Callable[..., Path]) -> Path:
    """Write the bundle with the trap, and return its repository."""
    path = write_bundle()
    graph = trap(onnx.load(path / "model.onnx"))
    (path / "model.onnx").write_bytes(graph.SerializeToString())
    relist(path, "model.onnx")
    return path.parents[1]


def test_a_lone_server_says_that_it_is_not_well(
    start: Callable, trapped: Path, picture: ClassifyRequest, error_of: Callable
) -> None:
    server = start(
        *("--engine-timeout", SECONDS, "--metrics-address", "127.0.0.1:0"), repository=trapped
    )
    with server.channel() as channel:
        classifier, health = ClassifierServiceStub(channel), HealthStub(channel)
        assert classifier.Classify(picture, timeout=60).predictions
        watch = health.Watch(HealthCheckRequest(service=MODEL), timeout=60)
        assert next(watch).status == HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            classifier.Classify(UNLUCKY, timeout=60)
        assert raised.value.code() is grpc.StatusCode.INTERNAL
        assert error_of(raised.value).reason == "ENGINE_HUNG"
        assert next(watch).status == HealthCheckResponse.NOT_SERVING
        overall = health.Check(HealthCheckRequest(), timeout=60)
        assert overall.status == HealthCheckResponse.NOT_SERVING
        (model,) = classifier.ListModels(ListModelsRequest(), timeout=60).models
        assert model.versions[0].reason == "the engine has not finished a run within 2 s"
        with pytest.raises(grpc.RpcError) as raised:
            classifier.Classify(picture, timeout=60)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        for path in ("/healthz", "/readyz"):
            assert server.get(path)[0] is HTTPStatus.SERVICE_UNAVAILABLE
    # Its thread does not end, and must not keep the process from it.
    assert server.stop() == 1
    assert "while a run of an engine hung" in server.log.read_text(encoding="utf-8")


def test_a_worker_starts_anew(start: Callable, trapped: Path, picture: ClassifyRequest) -> None:
    server = start(
        *("--engine-timeout", SECONDS, "--workers", "2", "--metrics-address", "127.0.0.1:0"),
        repository=trapped,
    )
    with (
        server.channel() as channel,
        pytest.raises(grpc.RpcError, match="did not return"),
    ):
        ClassifierServiceStub(channel).Classify(UNLUCKY, timeout=60)
    wanted = {
        ("foveate_worker_restarts_total", frozenset()): 1.0,
        ("foveate_workers_ready", frozenset()): 2.0,
    }
    wait_until(
        lambda: wanted.items() <= server.metrics().items(),
        told=lambda: server.log.read_text(encoding="utf-8"),
    )
    for _ in range(4):
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.address, options) as channel:
            assert ClassifierServiceStub(channel).Classify(picture, timeout=60).predictions
    assert server.get("/healthz")[0] is HTTPStatus.OK
    assert server.stop() == 0
