"""The server starts, tells how it is, and stops without losing what it took."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from foveate.v1.classifier_service_pb2 import (
    ClassifyRequest,
    ClassifyStreamRequest,
    ListModelsRequest,
    RawImage,
)

from ..conftest import BOTH
from ..waiting import wait_until

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
SERVICES = ("", "foveate.v1.ClassifierService", "foveate.v1.RepositoryService")


def digit(value: int = 0) -> ClassifyRequest:
    pixels = np.full((28, 28, 1), value, dtype=np.uint8)
    raw = RawImage(height=28, width=28, channels=1, data=pixels.tobytes())
    return ClassifyRequest(model="lenet5", raw=raw)


def test_one_line_tells_the_models_and_the_address(server) -> None:
    assert server.line == f"foveate serving 2 models on {server.address}\n"


@pytest.mark.parametrize("service", SERVICES)
def test_health_is_told_by_service(server, service: str) -> None:
    answer = HealthStub(server.channel).Check(HealthCheckRequest(service=service), timeout=60)
    assert answer.status == SERVING


def test_the_health_of_an_unknown_service_is_not_found(server) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        HealthStub(server.channel).Check(HealthCheckRequest(service="nothing"), timeout=60)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_describes_the_services(server) -> None:
    database = ProtoReflectionDescriptorDatabase(server.channel)
    assert {*SERVICES[1:], "grpc.health.v1.Health"} <= set(database.get_services())
    service = DescriptorPool(database).FindServiceByName("foveate.v1.ClassifierService")
    assert [method.name for method in service.methods] == [
        "Classify",
        "ClassifyStream",
        "ListModels",
        "GetModel",
    ]


@BOTH
def test_an_idle_server_is_small(start: Callable, repository: Path) -> None:
    server = start(repository)
    assert server.resident_bytes() < 250 << 20


@BOTH
def test_a_signal_turns_readiness_off_and_the_server_serves_on_for_its_delay(
    start: Callable, digits_repository: Path
) -> None:
    server = start(digits_repository, "--shutdown-delay", "4")
    watch = HealthStub(server.channel).Watch(HealthCheckRequest(), timeout=60)
    assert next(watch).status == SERVING
    server.terminate()
    assert next(watch).status == NOT_SERVING
    assert server.classifier.Classify(digit(), timeout=60).predictions
    for service in SERVICES:
        answer = HealthStub(server.channel).Check(HealthCheckRequest(service=service), timeout=60)
        assert answer.status == NOT_SERVING
    # An open watch does not hold the server up.
    assert server.process.wait(timeout=60) == 0


@BOTH
def test_requests_in_flight_are_answered_and_later_ones_told_to_go_elsewhere(
    start: Callable, digits_repository: Path
) -> None:
    # The batch is never full, so every request waits for five seconds.
    server = start(digits_repository, "--max-delay", "5", "--max-batch", "64")
    watch = HealthStub(server.channel).Watch(HealthCheckRequest(), timeout=60)
    assert next(watch).status == SERVING
    calls = [server.classifier.Classify.future(digit(value), timeout=60) for value in range(20)]
    server.classifier.ListModels(ListModelsRequest(), timeout=60)  # after which they are taken
    server.terminate()
    assert not any(call.done() for call in calls)
    assert next(watch).status == NOT_SERVING
    # The watch ends when no more calls are taken, after which clients go elsewhere.
    assert list(watch) == []
    wait_until(lambda: not can_connect(server.address))
    with pytest.raises(grpc.RpcError) as raised:
        server.classifier.Classify(digit(), timeout=60)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not any(call.done() for call in calls)
    answers = [call.result() for call in calls]
    assert all(answer.predictions for answer in answers)
    assert server.process.wait(timeout=60) == 0
    with pytest.raises(grpc.RpcError) as raised:
        server.classifier.Classify(digit(), timeout=60)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


@BOTH
def test_an_open_stream_gets_its_answers_and_is_told_to_go_elsewhere(
    start: Callable, digits_repository: Path, error_of: Callable
) -> None:
    server = start(digits_repository, "--max-delay", "2", "--max-batch", "64")

    def requests():
        for number in range(3):
            yield ClassifyStreamRequest(request_id=str(number), request=digit(number))
        stopped.wait()

    stopped = threading.Event()
    stream = server.classifier.ClassifyStream(requests(), timeout=60)
    assert next(stream).request_id == "0"
    server.terminate()
    assert [next(stream).request_id for _ in range(2)] == ["1", "2"]
    with pytest.raises(grpc.RpcError) as raised:
        next(stream)
    stopped.set()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert error_of(raised.value).reason == "STOPPING"
    assert server.process.wait(timeout=60) == 0


@BOTH
def test_a_second_signal_stops_at_once(start: Callable, digits_repository: Path) -> None:
    server = start(digits_repository, "--max-delay", "600", "--max-batch", "64")
    watch = HealthStub(server.channel).Watch(HealthCheckRequest(), timeout=60)
    assert next(watch).status == SERVING
    call = server.classifier.Classify.future(digit(), timeout=120)
    server.classifier.ListModels(ListModelsRequest(), timeout=60)
    server.terminate()
    assert next(watch).status == NOT_SERVING
    server.terminate()
    # Not 0, as where it had waited for the batch.
    assert server.process.wait(timeout=60) == 1
    assert call.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


@BOTH
def test_the_log_of_a_whole_life_has_no_traceback(start: Callable, digits_repository: Path) -> None:
    server = start(digits_repository)
    server.classifier.Classify(digit(), timeout=60)
    with pytest.raises(grpc.RpcError):
        server.classifier.Classify(ClassifyRequest(model="lenet5", encoded=b"x"), timeout=60)
    stream = server.classifier.ClassifyStream(
        iter([ClassifyStreamRequest(request=digit())] * 100), timeout=60
    )
    next(stream)
    stream.cancel()
    server.terminate()
    assert server.process.wait(timeout=60) == 0
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


def test_a_port_in_use_is_an_error(server, repository: Path) -> None:
    done = serve(repository, "--address", server.address)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"cannot listen on {server.address}: Address already in use" in done.stderr


def test_a_repository_without_models_is_an_error(tmp_path: Path) -> None:
    done = serve(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds no model that can be loaded" in done.stderr


def test_a_broken_model_does_not_keep_the_others_from_serving(
    start: Callable, own_repository: Path
) -> None:
    (own_repository / "efficientnet_lite0" / "1" / "model.onnx").write_bytes(b"broken")
    server = start(own_repository)
    assert server.line.startswith("foveate serving 1 model on ")
    broken, _ = server.classifier.ListModels(ListModelsRequest(), timeout=60).models
    assert broken.versions[0].reason.startswith("model.onnx: 6 bytes")
    assert not broken.default_version
    with pytest.raises(grpc.RpcError) as raised:
        server.classifier.Classify(ClassifyRequest(model=broken.name, encoded=b"x"), timeout=60)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert server.classifier.Classify(digit(), timeout=60).predictions


def can_connect(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port))):
        return True
    return False


def serve(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    foveate = Path(sys.executable).with_name("foveate")
    return subprocess.run(
        [foveate, "serve", "--repository", repository, "--address", "127.0.0.1:0", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
