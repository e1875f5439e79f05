"""deploy/ray as it stands, on a cluster of this machine: two replicas behind Ray's gRPC proxy."""

import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import yaml

from foveate_client import Cam, Classification, Client, FoveateError, InvalidArgumentError
from foveate_serve.rpc.errors import MALFORMED

from ..ray_environment import ray_environment, without_ray
from ..waiting import wait_until

pytestmark = pytest.mark.network

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = [ROOT / "web/foveate_web/examples" / name for name in ("cat.jpg", "coffee.jpg")]
START_SECONDS = 240.0
"""Ray starts its processes, and those of the replicas, before the first picture."""

STARTS = 3
"""Ray gives a start up that takes more than 30 s of its own, as on a machine that is busy."""

REPLICA = "ray::ServeReplica:foveate:Classifier"


@dataclass(frozen=True)
class Cluster:
    """A running `serve run`, by its process, and the address of its gRPC proxy."""

    process: subprocess.Popen
    address: str

    def replicas(self) -> set[int]:
        """Return the processes of the replicas."""
        found = set()
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if process.cmdline()[:1] and process.cmdline()[0].startswith(REPLICA):
                    found.add(process.pid)
        return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(
    imagenet_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text("utf-8"))
    config["grpc_options"]["port"] = free_port()
    config["http_options"]["port"] = free_port()
    (app,) = config["applications"]
    app["args"] = {"repository": str(imagenet_repository), "engine_threads": 1}
    (deployment,) = app["deployments"]
    deployment["ray_actor_options"] = {"num_cpus": 0.1}
    scaling = deployment["autoscaling_config"]
    assert scaling["min_replicas"] == 2
    scaling |= {"max_replicas": 3, "upscale_delay_s": 1, "metrics_interval_s": 1}
    path = tmp_path_factory.mktemp("ray-serve") / "serve.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    address = f"127.0.0.1:{config['grpc_options']['port']}"
    serve = ray_environment(tmp_path_factory) / "serve"
    log = path.with_suffix(".log")
    for _ in range(STARTS):
        with running(serve, path, log, address) as started:
            wait_until(lambda: ready(started), limit=START_SECONDS)
            if started.process.poll() is None:
                yield started
                return
    pytest.fail(log.read_text("utf-8"))


@contextmanager
def running(serve: Path, config: Path, log: Path, address: str) -> Iterator[Cluster]:
    # The paths of Ray's sockets are bounded, and pytest's folders have long ones.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        log.open("wb") as file,
        subprocess.Popen(
            [serve, "run", config],
            env={**without_ray(), "RAY_TMPDIR": folder},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield Cluster(process, address)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def ready(cluster: Cluster) -> bool:
    if cluster.process.poll() is not None:
        return True
    with suppress(FoveateError), Client(cluster.address, timeout=1) as client:
        return len(cluster.replicas()) == 2 and bool(list(client.models()))
    return False


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.address, timeout=60) as client:
        yield client


def test_replicas_answer_as_the_process_itself(client, imagenet_repository):
    options = {"model": "efficientnet_lite0", "cam": Cam(top=2)}
    with Client.local(imagenet_repository) as here:
        wanted = [here.classify(x, **options) for x in PHOTOGRAPHS]
        assert client.model("efficientnet_lite0").labels == here.model("efficientnet_lite0").labels
    # So many that both replicas have answered some, but for a chance of one in 2^19.
    for _ in range(10):
        for picture, expected in zip(PHOTOGRAPHS, wanted, strict=True):
            found = client.classify(picture, **options)
            assert [x.class_id for x in found.predictions] == [
                x.class_id for x in expected.predictions
            ]
            for one, other in zip(found.cams, expected.cams, strict=True):
                assert np.abs(one.array - other.array).max() < 1e-3 * np.abs(other.array).max()


def test_errors_keep_their_reasons(client):
    with pytest.raises(InvalidArgumentError) as caught:
        client.classify(PHOTOGRAPHS[0], model="efficientnet_lite0", top_k=1001)
    assert caught.value.reason == "TOP_K_OUT_OF_RANGE"
    assert [x.field for x in caught.value.field_violations] == ["top_k"]
    with pytest.raises(FoveateError) as caught:
        client.classify(PHOTOGRAPHS[0], model="none")
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_bytes_that_are_no_message_are_refused(cluster):
    with grpc.insecure_channel(cluster.address) as channel:
        service = "/foveate.v1.ClassifierService"
        unary = channel.unary_unary(f"{service}/Classify")
        stream = channel.stream_stream(f"{service}/ClassifyStream")
        for call in (lambda: unary(b"\xff"), lambda: list(stream(iter([b"\xff"])))):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.details() == MALFORMED.message


def test_a_stream_keeps_its_order_and_an_error_its_place(client):
    pictures = [*PHOTOGRAPHS * 5, b"no picture", *PHOTOGRAPHS]
    answers = list(client.classify_many(pictures, model="efficientnet_lite0"))
    assert isinstance(answers.pop(10), InvalidArgumentError)
    assert all(isinstance(x, Classification) for x in answers)
    best = [x.predictions[0].label for x in answers]
    assert best == ["Egyptian cat", "espresso"] * 6


def test_a_replica_that_dies_is_replaced_and_load_brings_another(cluster, client):
    stop = threading.Event()
    answered, failed = [], []

    def ask() -> None:
        while not stop.is_set():
            try:
                answered.append(client.classify(PHOTOGRAPHS[0], model="efficientnet_lite0"))
            except FoveateError as error:
                failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(32)]
    before = cluster.replicas()
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(answered) > 64, limit=60)
        # 32 at once are more than twice the target of 8.
        wait_until(lambda: len(cluster.replicas()) == 3, limit=120)
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: len(cluster.replicas() - {killed}) == 3, limit=120)
        count = len(answered)
        wait_until(lambda: len(answered) > count + 64, limit=60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    # What the dead replica had in hand is lost, and no more.
    assert len(failed) <= 32
    assert {x.predictions[0].label for x in answered} == {"Egyptian cat"}


def test_a_setting_of_a_listener_is_refused(tmp_path_factory):
    python = ray_environment(tmp_path_factory) / "python"
    code = "import foveate_serve.ray_serve as x; x.application({'repository': '.', 'tokens': 't'})"
    found = subprocess.run(
        [python, "-c", code], check=False, env=without_ray(), capture_output=True, text=True
    )
    assert "tokens: a replica of Ray Serve has no such setting" in found.stderr.splitlines()[-1]
