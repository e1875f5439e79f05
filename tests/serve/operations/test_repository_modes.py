"""Who changes the models of a running server: its folder, or clients, and with labels."""

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import grpc
import pytest

from foveate.v1.classifier_service_pb2 import ClassifyRequest, ListModelsRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate.v1.model_pb2 import ModelSummary
from foveate.v1.repository_service_pb2 import LoadModelRequest, SetVersionLabelsRequest
from foveate.v1.repository_service_pb2_grpc import RepositoryServiceStub

from ...colours import write_colour_bundle
from ...waiting import wait_until

POLL = ("--repository-mode", "poll", "--poll-interval", "0.05")


def model(channel: grpc.Channel) -> ModelSummary:
    answer = ClassifierServiceStub(channel).ListModels(ListModelsRequest(), timeout=60)
    return next(iter(answer.models), ModelSummary())


def test_a_folder_is_followed_from_empty_to_new_versions(
    start: Callable, write_bundle: Callable, picture: ClassifyRequest, tmp_path: Path
) -> None:
    (tmp_path / "repository").mkdir()
    server = start(*POLL, "--admin", repository=tmp_path / "repository")
    with server.channel() as channel:
        classifier = ClassifierServiceStub(channel)
        write_bundle(version=1)
        wait_until(lambda: model(channel).default_version == "1")
        # What is still being copied: the manifest is there, and the graph is not.
        path = write_colour_bundle(tmp_path / "outside", version=2)
        (path / "model.onnx").rename(tmp_path / "model.onnx")
        path = path.rename(tmp_path / "repository" / "colours" / "2")
        wait_until(lambda: "model.onnx" in model(channel).versions[0].reason)
        answered = [classifier.Classify(picture, timeout=60).version]
        (tmp_path / "model.onnx").rename(path / "model.onnx")
        while "2" not in answered:
            answered.append(classifier.Classify(picture, timeout=60).version)
        assert answered == ["1"] * (len(answered) - 1) + ["2"]
        with pytest.raises(grpc.RpcError, match="serves what its folder holds"):
            RepositoryServiceStub(channel).LoadModel(LoadModelRequest(name="colours"), timeout=60)
    assert server.stop() == 0
    assert "model.onnx: no such file" in server.log.read_text(encoding="utf-8")


def test_explicit_starts_without_models(
    start: Callable, picture: ClassifyRequest, error_of: Callable
) -> None:
    server = start("--repository-mode", "explicit", "--admin", "--metrics-address", "127.0.0.1:0")
    with server.channel() as channel:
        classifier = ClassifierServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            classifier.Classify(picture, timeout=60)
        assert error_of(raised.value).reason == "MODEL_NOT_READY"
        assert server.get("/readyz")[0] is HTTPStatus.OK
        RepositoryServiceStub(channel).LoadModel(LoadModelRequest(name="colours"), timeout=60)
        assert classifier.Classify(picture, timeout=60).version == "1"


def test_labels_are_configured_named_by_requests_and_moved(
    start: Callable, write_bundle: Callable, picture: ClassifyRequest, tmp_path: Path
) -> None:
    for version in (1, 2, 3):
        write_bundle(version=version)
    server = start(
        *("--admin", "--workers", "2", "--version-labels", "colours:stable=1,colours:canary=2"),
        repository=tmp_path / "repository",
    )

    def answers(version: str) -> set[str]:
        """Return the versions that answer, asked over many connections."""
        request = ClassifyRequest(version=version)
        request.MergeFrom(picture)
        found = set()
        for _ in range(8):
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(server.address, options) as channel:
                found.add(ClassifierServiceStub(channel).Classify(request, timeout=60).version)
        return found

    asked = ("", "stable", "canary", "latest", "2")
    assert [answers(version) for version in asked] == [{"1"}, {"1"}, {"2"}, {"3"}, {"2"}]
    with server.channel() as channel:
        labels = {"stable": "2"}
        moved = RepositoryServiceStub(channel).SetVersionLabels(
            SetVersionLabelsRequest(name="colours", version_labels=labels), timeout=60
        )
        assert moved.model.version_labels == labels
        assert [answers(version) for version in ("", "stable")] == [{"2"}, {"2"}]
        with pytest.raises(grpc.RpcError) as raised:
            answers("canary")
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
