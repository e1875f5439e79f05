"""Several workers on one address: shared, restarted, changed together, and stopped without loss."""

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from foveate.v1.classifier_service_pb2 import ClassifyRequest, ListModelsRequest
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate.v1.repository_service_pb2 import LoadModelRequest, UnloadModelRequest
from foveate.v1.repository_service_pb2_grpc import RepositoryServiceStub
from foveate_serve.process import StartError
from foveate_serve.rpc.server import AddressError
from foveate_serve.workers import supervisor

from ...conftest import BOTH
from ...waiting import wait_until

COLOURS = frozenset({("model", "colours"), ("version", "1")})
READY = ("foveate_workers_ready", frozenset())


@pytest.fixture
def connect() -> Iterator[Callable[[object], grpc.Channel]]:
    """Return a function that opens a connection of its own, and so reaches any worker."""
    with ExitStack() as stack:

        def connect(server) -> grpc.Channel:
            options = [("grpc.use_local_subchannel_pool", 1)]
            return stack.enter_context(grpc.insecure_channel(server.address, options))

        yield connect


def workers(server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def wait_for(ready: int, server) -> None:
    """Wait until so many workers serve."""
    wait_until(
        lambda: server.metrics()[READY] == ready,
        told=lambda: server.log.read_text(encoding="utf-8"),
    )


def test_a_worker_that_dies_is_replaced_while_the_other_serves(
    start: Callable, connect: Callable, picture: ClassifyRequest
) -> None:
    server = start("--workers", "2", "--metrics-address", "127.0.0.1:0")
    before = workers(server)
    assert len(before) == 2
    for _ in range(8):
        ClassifierServiceStub(connect(server)).Classify(picture, timeout=60)
    before[0].kill()
    wait_for(1, server)
    assert server.get("/readyz")[0] is HTTPStatus.OK
    ClassifierServiceStub(connect(server)).Classify(picture, timeout=60)
    wait_for(2, server)
    after = workers(server)
    assert before[1] in after
    assert before[0] not in after
    for _ in range(8):
        ClassifierServiceStub(connect(server)).Classify(picture, timeout=60)
    samples = server.metrics()
    # The counts of the one that died are kept.
    assert samples["foveate_requests_total", COLOURS | {("code", "OK")}] == 17
    assert samples["nv_inference_request_success", COLOURS] == 17
    assert samples["foveate_worker_restarts_total", frozenset()] == 1
    assert "onnxruntime, cpu, fp32" in server.get("/")[1]
    assert server.stop() == 0


@BOTH
def test_a_change_of_models_reaches_every_worker_and_those_that_come_later(
    start: Callable, connect: Callable, write_bundle: Callable, tmp_path: Path
) -> None:
    write_bundle()
    server = start(
        *("--workers", "2", "--admin", "--metrics-address", "127.0.0.1:0"),
        repository=tmp_path / "repository",
    )

    def served() -> set[frozenset[str]]:
        """Return the sets of models that workers serve, asked over many connections."""
        answers = [
            ClassifierServiceStub(connect(server)).ListModels(ListModelsRequest(), timeout=60)
            for _ in range(16)
        ]
        return {frozenset(m.name for m in a.models if m.default_version) for a in answers}

    write_bundle(name="later")
    repository = RepositoryServiceStub(connect(server))
    repository.LoadModel(LoadModelRequest(name="later"), timeout=60)
    assert served() == {frozenset({"colours", "later"})}
    repository.UnloadModel(UnloadModelRequest(name="colours"), timeout=60)
    assert served() == {frozenset({"later"})}
    workers(server)[0].kill()
    wait_for(1, server)
    wait_for(2, server)
    # The new one would load both by itself.
    assert served() == {frozenset({"later"})}
    with pytest.raises(grpc.RpcError) as raised:
        repository.LoadModel(LoadModelRequest(name="none"), timeout=60)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@BOTH
def test_a_stop_answers_what_the_workers_have_taken(
    start: Callable, connect: Callable, picture: ClassifyRequest
) -> None:
    server = start("--workers", "2", "--max-delay", "5", "--max-batch", "64")
    calls = []
    for _ in range(8):
        stub = ClassifierServiceStub(connect(server))
        calls.append(stub.Classify.future(picture, timeout=60))
        stub.ListModels(ListModelsRequest(), timeout=60)  # after which it has been taken
    assert server.stop() == 0
    assert all(call.result().predictions for call in calls)
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


@BOTH
def test_a_second_signal_kills_the_workers(start: Callable, picture: ClassifyRequest) -> None:
    server = start("--workers", "2", "--max-delay", "600", "--max-batch", "64")
    children = workers(server)
    with server.channel() as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=60)
        next(watch)
        call = ClassifierServiceStub(channel).Classify.future(picture, timeout=60)
        ClassifierServiceStub(channel).ListModels(ListModelsRequest(), timeout=60)
        server.process.send_signal(signal.SIGTERM)
        next(watch)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 1
        assert call.exception() is not None
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() for child in children)


def test_workers_do_not_outlive_their_supervisor(start: Callable) -> None:
    server = start("--workers", "2")
    children = workers(server)
    server.process.kill()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert (len(gone), alive) == (2, [])


def test_a_worker_that_cannot_start_is_told_of(tmp_path: Path, repository: Path) -> None:
    foveate = Path(sys.executable).with_name("foveate")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [foveate, "serve", "--workers", "2", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    (tmp_path / "empty").mkdir()
    done = run("--repository", tmp_path / "empty", "--address", "127.0.0.1:0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds no model that can be loaded" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = run("--repository", repository, "--address", address)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"cannot listen on {address}: Address already in use" in done.stderr


def test_a_long_tmpdir_leaves_room_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(supervisor, "_SHORT_PLACES", (str(long), "/dev/shm"))  # noqa: S108
    monkeypatch.setattr(supervisor, "_LONGEST_PLACE", len(str(tmp_path)))
    assert supervisor.short_place() == str(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(long))
    assert supervisor.short_place() == "/dev/shm"  # noqa: S108
    monkeypatch.setattr(supervisor, "_SHORT_PLACES", ())
    with pytest.raises(StartError, match="set TMPDIR"):
        supervisor.short_place()


def test_every_address_of_a_name_is_reserved_and_one_that_is_missing_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")

    def name_of(*hosts: str) -> None:
        def find(_host: str, port: int, **_: object) -> list[object]:
            return [(*kind, (host, port)) for host in hosts]

        monkeypatch.setattr(socket, "getaddrinfo", find)

    name_of("192.0.2.1", "127.0.0.1", "127.0.0.2")
    with supervisor.reserved("both:0") as address:
        number = int(address.rpartition(":")[2])
        for host in ("127.0.0.1", "127.0.0.2"):
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind((host, number))
    name_of("192.0.2.1")
    with (
        pytest.raises(AddressError, match="cannot listen on none:0"),
        supervisor.reserved("none:0"),
    ):
        pass
    with socket.create_server(("127.0.0.2", 0)) as other:
        name_of("127.0.0.1", "127.0.0.2")
        taken = f"both:{other.getsockname()[1]}"
        with pytest.raises(AddressError, match="in use"), supervisor.reserved(taken):
            pass
