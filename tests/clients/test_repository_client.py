"""Changes of a server's models, by the library and by `foveate models`."""

# ruff: noqa: N802 - the protocol names the methods

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc.code_pb2 import Code

from foveate.status import TRAILER, ErrorStatus
from foveate.v1 import model_pb2 as models
from foveate.v1 import repository_service_pb2 as service
from foveate.v1.repository_service_pb2_grpc import (
    RepositoryServiceServicer,
    add_RepositoryServiceServicer_to_server,
)
from foveate_client import FailedPreconditionError, RepositoryClient
from foveate_client.commands import models as command

from ..ports import listen


class Service(RepositoryServiceServicer):
    """Notes what it is asked, and answers with a model whose newest version serves."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def LoadModel(self, request, context):
        if request.version == "13":
            status = ErrorStatus(
                code=Code.FAILED_PRECONDITION,
                reason="MODEL_LOAD_FAILED",
                message="version 13 of the model 'pets' failed to load",
            )
            context.set_trailing_metadata(((TRAILER, status.to_status().SerializeToString()),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, status.message)
        return service.LoadModelResponse(model=self._model(request))

    def ReloadModel(self, request, context):
        return service.ReloadModelResponse(model=self._model(request))

    def UnloadModel(self, request, context):
        return service.UnloadModelResponse(model=self._model(request))

    def SetVersionLabels(self, request, context):
        return service.SetVersionLabelsResponse(model=self._model(request))

    def _model(self, request) -> models.ModelSummary:
        self.asked.append(request)
        version = models.ModelVersion(version="4", state=models.MODEL_STATE_READY)
        labels = getattr(request, "version_labels", {})
        return models.ModelSummary(
            name=request.name, versions=[version], default_version="4", version_labels=labels
        )


@pytest.fixture
def repository_server():
    answering = Service()
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    add_RepositoryServiceServicer_to_server(answering, server)
    answering.address = f"127.0.0.1:{listen(server)}"
    server.start()
    yield answering
    server.stop(None).wait()


def test_the_library_changes_models(repository_server):
    with RepositoryClient(repository_server.address) as repository:
        changed = [
            repository.load("pets"),
            repository.reload("pets", "stable"),
            repository.unload("pets", "3"),
            repository.set_labels("pets", {"stable": "4"}),
        ]
    assert repository_server.asked == [
        service.LoadModelRequest(name="pets"),
        service.ReloadModelRequest(name="pets", version="stable"),
        service.UnloadModelRequest(name="pets", version="3"),
        service.SetVersionLabelsRequest(name="pets", version_labels={"stable": "4"}),
    ]
    assert [model.versions[0].state for model in changed] == ["ready"] * 4
    assert changed[-1].version_labels == {"stable": "4"}


def test_a_load_that_fails_raises_the_error_of_its_code(repository_server):
    with (
        RepositoryClient(repository_server.address) as repository,
        pytest.raises(FailedPreconditionError, match="version 13 of the model") as raised,
    ):
        repository.load("pets", "13")
    assert raised.value.reason == "MODEL_LOAD_FAILED"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--load"], service.LoadModelRequest(name="pets")),
        (
            ["--load", "--version", "4"],
            service.LoadModelRequest(name="pets", version="4"),
        ),
        (["--reload"], service.ReloadModelRequest(name="pets")),
        (["--unload"], service.UnloadModelRequest(name="pets")),
        (
            ["--labels", "stable=3,canary=4"],
            service.SetVersionLabelsRequest(
                name="pets", version_labels={"stable": "3", "canary": "4"}
            ),
        ),
        (["--labels", ""], service.SetVersionLabelsRequest(name="pets")),
    ],
)
def test_the_command_changes_a_model_and_shows_it(repository_server, capsys, arguments, expected):
    where = ("pets", "--address", repository_server.address)
    assert command.main([*where, *arguments]) == 0
    assert repository_server.asked == [expected]
    out, err = capsys.readouterr()
    _, line = out.splitlines()
    kept = "--version-labels pets:stable=3,pets:canary=4"
    assert (kept in err) == ("stable=3,canary=4" in arguments)
    assert line.split()[:3] == ["pets", "4", "ready"]
    assert command.main([*where, *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"][0]["state"] == "ready"


def test_the_command_tells_why_a_change_failed(repository_server, capsys):
    arguments = ("pets", "--address", repository_server.address, "--load", "--version", "13")
    assert command.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("foveate models: version 13 of the model 'pets' failed to load")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--address", "localhost:1", "--load"],
        ["pets", "--repository", "models", "--load"],
        ["pets", "--address", "localhost:1", "--load", "--unload"],
        ["pets", "--address", "localhost:1", "--labels", "stable"],
        ["pets", "--address", "localhost:1", "--labels", "stable=3", "--version", "3"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
