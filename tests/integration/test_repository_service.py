"""Models are loaded, changed and unloaded while the server runs."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from foveate.v1.classifier_service_pb2 import ClassifyRequest, ListModelsRequest, RawImage
from foveate.v1.model_pb2 import (
    MODEL_STATE_FAILED,
    MODEL_STATE_READY,
    MODEL_STATE_UNLOADED,
)
from foveate.v1.repository_service_pb2 import (
    LoadModelRequest,
    ReloadModelRequest,
    UnloadModelRequest,
)


def digit() -> ClassifyRequest:
    pixels = np.zeros((28, 28, 1), dtype=np.uint8)
    raw = RawImage(height=28, width=28, channels=1, data=pixels.tobytes())
    return ClassifyRequest(model="lenet5", raw=raw)


def break_bundle(path: Path) -> None:
    graph = bytearray((path / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (path / "model.onnx").write_bytes(graph)


@pytest.mark.parametrize("method", ["LoadModel", "UnloadModel", "ReloadModel"])
def test_it_is_refused_unless_enabled(server, error_of: Callable, method: str) -> None:
    request = {
        "LoadModel": LoadModelRequest,
        "UnloadModel": UnloadModelRequest,
        "ReloadModel": ReloadModelRequest,
    }[method](name="lenet5")
    with pytest.raises(grpc.RpcError) as raised:
        getattr(server.repository, method)(request, timeout=60)
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error_of(raised.value).reason == "ADMIN_DISABLED"
    assert server.classifier.Classify(digit(), timeout=60).predictions


def test_a_model_is_unloaded_and_loaded_again(start: Callable, own_digits: Path) -> None:
    server = start(own_digits, "--admin")
    gone = server.repository.UnloadModel(UnloadModelRequest(name="lenet5"), timeout=60).model
    assert [v.state for v in gone.versions] == [MODEL_STATE_UNLOADED]
    with pytest.raises(grpc.RpcError) as raised:
        server.classifier.Classify(digit(), timeout=60)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    back = server.repository.LoadModel(LoadModelRequest(name="lenet5"), timeout=60).model
    assert [v.state for v in back.versions] == [MODEL_STATE_READY]
    assert server.classifier.Classify(digit(), timeout=60).predictions


def test_an_unknown_model_is_not_found(start: Callable, own_digits: Path) -> None:
    server = start(own_digits, "--admin")
    for request in (
        LoadModelRequest(name="../models"),
        LoadModelRequest(name="lenet5", version="2"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            server.repository.LoadModel(request, timeout=60)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_corrupt_bundle_leaves_the_old_one_serving(
    start: Callable, own_digits: Path, error_of: Callable
) -> None:
    server = start(own_digits, "--admin")
    before = server.classifier.Classify(digit(), timeout=60)
    break_bundle(own_digits / "lenet5" / "1")
    with pytest.raises(grpc.RpcError) as raised:
        server.repository.ReloadModel(ReloadModelRequest(name="lenet5"), timeout=60)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    status = error_of(raised.value)
    assert status.reason == "MODEL_LOAD_FAILED"
    assert "model.onnx: its SHA-256" in status.message
    assert str(own_digits) not in status.message

    (lenet,) = server.classifier.ListModels(ListModelsRequest(), timeout=60).models
    assert lenet.versions[0].state == MODEL_STATE_READY
    assert "SHA-256" in lenet.versions[0].reason
    assert server.classifier.Classify(digit(), timeout=60).predictions == before.predictions


def test_a_corrupt_newer_version_leaves_the_older_one_serving(
    start: Callable, own_digits: Path
) -> None:
    server = start(own_digits, "--admin")
    newer = shutil.copytree(own_digits / "lenet5" / "1", own_digits / "lenet5" / "2")
    break_bundle(newer)
    with pytest.raises(grpc.RpcError):
        server.repository.LoadModel(LoadModelRequest(name="lenet5"), timeout=60)
    (lenet,) = server.classifier.ListModels(ListModelsRequest(), timeout=60).models
    assert [(v.version, v.state) for v in lenet.versions] == [
        ("2", MODEL_STATE_FAILED),
        ("1", MODEL_STATE_READY),
    ]
    assert server.classifier.Classify(digit(), timeout=60).version == "1"


def test_reloading_under_load_loses_no_request(start: Callable, own_digits: Path) -> None:
    server = start(own_digits, "--admin")
    done = threading.Event()
    answers: list[int] = []
    errors: list[grpc.RpcError] = []

    def ask() -> None:
        count = 0
        while not done.is_set():
            try:
                assert server.classifier.Classify(digit(), timeout=60).predictions
                count += 1
            except grpc.RpcError as error:
                errors.append(error)
        answers.append(count)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    for _ in range(5):
        server.repository.ReloadModel(ReloadModelRequest(name="lenet5"), timeout=60)
    done.set()
    for caller in callers:
        caller.join()
    assert not errors
    assert all(answers)
