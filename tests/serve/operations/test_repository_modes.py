"""Who changes the models of a running server: its folder, or clients, and with labels."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import onnx
import pytest

from foveate.v1.classifier_service_pb2 import ClassifyRequest, ListModelsRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate.v1.model_pb2 import (
    MODEL_STATE_FAILED,
    MODEL_STATE_ON_DEMAND,
    MODEL_STATE_READY,
    ModelSummary,
)
from foveate.v1.repository_service_pb2 import LoadModelRequest, SetVersionLabelsRequest
from foveate.v1.repository_service_pb2_grpc import RepositoryServiceStub
from foveate_runtime.bundle.bundle import Bundle

from ...colours import relist, write_colour_bundle
from ...conftest import FOVEATE
from ...waiting import LIMIT_SECONDS, wait_until

RESPECT_PERMISSIONS = """
import ctypes, os, sys
drop_from_bounding_set, dac_override, dac_read_search = 24, 1, 2
for capability in (dac_override, dac_read_search):
    ctypes.CDLL(None).prctl(drop_from_bounding_set, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Has a program obey the modes of files, also as the superuser."""

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
        with pytest.raises(grpc.RpcError, match="follows its folder"):
            RepositoryServiceStub(channel).LoadModel(LoadModelRequest(name="colours"), timeout=60)
    assert server.stop() == 0
    assert "model.onnx: no such file" in server.log.read_text(encoding="utf-8")


def test_a_start_says_what_it_may_not_read(colours: Bundle) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        shutil.copytree(colours.path.parent, root / "colours")
        (root / "colours").chmod(0)
        done = subprocess.run(
            [
                *(sys.executable, "-c", RESPECT_PERMISSIONS),
                *(FOVEATE, "serve", "--repository", root, "--address", "127.0.0.1:0"),
            ],
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        (root / "colours").chmod(0o755)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "foveate serve: repository: it holds no model that can be loaded; "
        "Permission denied: colours"
    )


def test_what_cannot_be_read_any_more_serves_on_and_stands_on_the_page(
    start: Callable, write_bundle: Callable, tmp_path: Path
) -> None:
    model = write_bundle().parent
    server = start(*POLL, "--metrics-address", "127.0.0.1:0", repository=tmp_path / "repository")
    model.rename(tmp_path / "aside")
    model.symlink_to("colours")
    told = f"{os.strerror(errno.ELOOP)}: colours"
    wait_until(lambda: told in server.get("/")[1])
    server.classify()
    model.unlink()
    (tmp_path / "aside").rename(model)
    wait_until(lambda: told not in server.get("/")[1])
    server.classify()
    assert server.stop() == 0
    assert server.log.read_text(encoding="utf-8").count(told) == 1


def test_a_bad_model_ends_neither_the_start_nor_the_polling(
    start: Callable, write_bundle: Callable, picture: ClassifyRequest, tmp_path: Path
) -> None:
    write_bundle()
    bad = write_bundle(name="bad")
    graph = onnx.load(bad / "model.onnx")
    gain = onnx.helper.make_tensor_value_info("gain", onnx.TensorProto.FLOAT, [3])
    graph.graph.input.append(gain)
    onnx.save(graph, bad / "model.onnx")
    relist(bad, "model.onnx")
    server = start(*POLL, repository=tmp_path / "repository")
    with server.channel() as channel:
        classifier = ClassifierServiceStub(channel)

        def summary() -> dict[str, ModelSummary]:
            answer = classifier.ListModels(ListModelsRequest(), timeout=60)
            return {model.name: model for model in answer.models}

        assert classifier.Classify(picture, timeout=60).version == "1"
        (failed,) = summary()["bad"].versions
        assert failed.state == MODEL_STATE_FAILED
        assert failed.reason.startswith("the graph has an input 'gain'")
        write_bundle(name="later")
        wait_until(lambda: "later" in summary() and summary()["later"].default_version == "1")
    assert "the graph has an input 'gain'" in server.log.read_text(encoding="utf-8")


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


def test_requests_load_models_within_a_limit_of_bytes(
    start: Callable, write_bundle: Callable, picture: ClassifyRequest
) -> None:
    graphs = [write_bundle(name=name) / "model.onnx" for name in ("one", "two", "three")]
    limit = 2 * max(graph.stat().st_size for graph in graphs) + 1
    server = start("--max-model-bytes", str(limit), repository=graphs[0].parents[2])
    with server.channel() as channel:
        classifier = ClassifierServiceStub(channel)
        for name in ("one", "two", "three", "one", "three"):
            picture.model = name
            assert classifier.Classify(picture, timeout=60).model == name
        models = classifier.ListModels(ListModelsRequest(), timeout=60).models
    states = {model.name: model.versions[0].state for model in models}
    assert states == {
        "one": MODEL_STATE_READY,
        "three": MODEL_STATE_READY,
        "two": MODEL_STATE_ON_DEMAND,
    }


def test_a_limit_of_bytes_and_explicit_loads_exclude_each_other(tmp_path: Path) -> None:
    options = ("--repository-mode", "explicit", "--admin", "--max-model-bytes", "1000")
    ended = subprocess.run(
        [FOVEATE, "serve", "--repository", str(tmp_path), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "max_model_bytes" in ended.stderr
