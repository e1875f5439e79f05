"""Health of the server and of each model, asked and watched."""

import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_channelz.v1.channelz_pb2 import GetServersRequest
from grpc_channelz.v1.channelz_pb2_grpc import ChannelzStub
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
)
from grpc_health.v1.health_pb2_grpc import HealthStub

from foveate.v1.repository_service_pb2 import LoadModelRequest, UnloadModelRequest
from foveate.v1.repository_service_pb2_grpc import RepositoryServiceStub

from ...conftest import BOTH

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN
COLOURS = "foveate.v1.ClassifierService/colours"
LATER = "foveate.v1.ClassifierService/later"


@BOTH
def test_a_models_health_follows_its_loads(
    start: Callable, write_bundle: Callable, tmp_path: Path
) -> None:
    write_bundle()
    server = start("--admin", repository=tmp_path / "repository")
    with server.channel() as channel:
        health, repository = HealthStub(channel), RepositoryServiceStub(channel)

        def status(service: str) -> int:
            return health.Check(HealthCheckRequest(service=service), timeout=60).status

        watch = health.Watch(HealthCheckRequest(service=COLOURS), timeout=60)
        later = health.Watch(HealthCheckRequest(service=LATER), timeout=60)
        overall = health.Watch(HealthCheckRequest(), timeout=60)
        assert [next(watch).status, next(later).status, next(overall).status] == [
            SERVING,
            UNKNOWN,
            SERVING,
        ]
        with pytest.raises(grpc.RpcError) as raised:
            status(LATER)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND

        repository.UnloadModel(UnloadModelRequest(name="colours"), timeout=60)
        assert next(watch).status == NOT_SERVING == status(COLOURS)
        # No model is left that serves.
        assert next(overall).status == NOT_SERVING
        assert status("") == status("foveate.v1.ClassifierService") == NOT_SERVING

        broken = write_bundle(name="later")
        shutil.copy(broken / "labels.txt", broken / "model.onnx")
        with pytest.raises(grpc.RpcError):
            repository.LoadModel(LoadModelRequest(name="later"), timeout=60)
        assert next(later).status == NOT_SERVING == status(LATER)
        shutil.rmtree(broken)
        write_bundle(name="later")
        repository.LoadModel(LoadModelRequest(name="later"), timeout=60)
        assert next(later).status == SERVING == status(LATER)
        assert next(overall).status == SERVING

        listed = health.List(HealthListRequest(), timeout=60).statuses
        assert {name: entry.status for name, entry in listed.items()} == {
            "": SERVING,
            "foveate.v1.ClassifierService": SERVING,
            "foveate.v1.RepositoryService": SERVING,
            "inference.GRPCInferenceService": SERVING,
            COLOURS: NOT_SERVING,
            LATER: SERVING,
        }
        with pytest.raises(grpc.RpcError) as raised:
            ChannelzStub(channel).GetServers(GetServersRequest(), timeout=60)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED  # it was not asked for
        server.process.terminate()
        assert next(overall).status == NOT_SERVING
        assert next(later).status == NOT_SERVING
        assert list(watch) == []
    assert server.process.wait(timeout=60) == 0


@BOTH
def test_channelz_answers_on_request(start: Callable) -> None:
    with start("--channelz").channel() as channel:
        (found,) = ChannelzStub(channel).GetServers(GetServersRequest(), timeout=60).server
        assert found.data.calls_started >= 1


@pytest.mark.parametrize("workers", [1, 2])
def test_readiness_and_health_agree_about_a_model_that_is_out(
    start: Callable, write_bundle: Callable, tmp_path: Path, workers: int
) -> None:
    write_bundle()
    server = start(
        *("--admin", "--metrics-address", "127.0.0.1:0", "--workers", workers),
        repository=tmp_path / "repository",
    )
    # Nobody asks for either while the model serves.
    with server.channel() as channel:
        repository = RepositoryServiceStub(channel)
        repository.UnloadModel(UnloadModelRequest(name="colours"), timeout=60)
        assert HealthStub(channel).Check(HealthCheckRequest(), timeout=60).status == NOT_SERVING
        assert server.get("/readyz")[0] == 503
        assert "not ready" in server.get("/")[1]
        repository.LoadModel(LoadModelRequest(name="colours"), timeout=60)
        assert HealthStub(channel).Check(HealthCheckRequest(), timeout=60).status == SERVING
        assert server.get("/readyz")[0] == 200
