"""Real servers in processes of their own, over the small bundle of colours."""

import json
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError

import grpc
import numpy as np
import onnx
import pytest
import trustme
from google.rpc.status_pb2 import Status
from onnx import TensorProto, helper
from prometheus_client.parser import text_string_to_metric_families

from foveate.status import TRAILER, ErrorStatus
from foveate.v1.classifier_service_pb2 import ClassifyRequest, RawImage
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate_runtime.bundle.bundle import Bundle

from ...conftest import FOVEATE, TRANSPORTS


@dataclass(frozen=True)
class Server:
    """A running `foveate serve`."""

    address: str
    process: subprocess.Popen[str]
    log: Path

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.address)

    def classify(self, **options: object) -> None:
        """Send one picture that the model takes."""
        with self.channel() as channel:
            ClassifierServiceStub(channel).Classify(red(), timeout=60, **options)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    @property
    def metrics_url(self) -> str:
        found = re.search(r"http://[0-9.:]+", self.log.read_text(encoding="utf-8"))
        assert found
        return found[0]

    def get(self, path: str, token: str = "") -> tuple[HTTPStatus, str]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.metrics_url + path, headers=headers)  # noqa: S310 - our own
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - our own
                return HTTPStatus(answer.status), answer.read().decode()
        except HTTPError as error:
            with error:
                return HTTPStatus(error.code), error.read().decode()

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return every sample by its name and its labels."""
        status, text = self.get("/metrics")
        assert status is HTTPStatus.OK
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def log_lines(self) -> list[dict[str, object]]:
        """Return the log, where it is in JSON."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]


def red(model: str = "colours") -> ClassifyRequest:
    """Return a request for a picture that is red."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:, :, 0] = 255
    raw = RawImage(height=8, width=8, channels=3, data=pixels.tobytes())
    return ClassifyRequest(model=model, raw=raw)


def http_address(server) -> str:
    """Return HOST:PORT of HTTP, which the log names."""
    found = re.search(r"HTTP on https?://([0-9.:]+)", server.log.read_text(encoding="utf-8"))
    assert found
    return found[1]


@contextmanager
def running(
    repository: Path,
    log: Path,
    *arguments: object,
    env: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Server]:
    """Run a server, by the command `prefix` where there is one."""
    command = [*prefix, FOVEATE, "serve", "--repository", repository, "--address", "127.0.0.1:0"]
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=env,
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            assert line, log.read_text(encoding="utf-8")
            yield Server(line.split()[-1], process, log)
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture(scope="session")
def repository(colours: Bundle) -> Path:
    """Return the repository that holds the bundle of colours alone."""
    return colours.path.parents[1]


Start = Callable[..., Server]


@contextmanager
def starter(repository: Path, logs: Path, transport: str) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(
            *arguments: object, repository: Path = repository, env: dict[str, str] | None = None
        ) -> Server:
            log = logs / f"log{len(list(logs.glob('log*')))}"
            flags = ("--transport", transport, *arguments)
            return stack.enter_context(running(repository, log, *flags, env=env))

        yield start


@pytest.fixture
def start(repository: Path, tmp_path: Path, transport: str) -> Iterator[Start]:
    """Return a function that starts a server for one test, with the bundle of colours."""
    with starter(repository, tmp_path, transport) as start:
        yield start


@pytest.fixture(scope="module")
def start_once(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Return a function that starts a server for the tests of a module."""
    with starter(repository, tmp_path_factory.mktemp("logs"), TRANSPORTS[0]) as start:
        yield start


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@dataclass(frozen=True)
class TlsFiles:
    """The files of a server's certificate, and its flags."""

    certificate: Path
    key: Path

    @property
    def flags(self) -> tuple[object, ...]:
        return ("--tls-certificate", self.certificate, "--tls-key", self.key)

    def write(self, issued: trustme.LeafCert) -> None:
        self.certificate.write_bytes(issued.cert_chain_pems[0].bytes())
        self.key.write_bytes(issued.private_key_pem.bytes())


@pytest.fixture
def tls(tmp_path: Path, authority: trustme.CA) -> TlsFiles:
    files = TlsFiles(tmp_path / "server.pem", tmp_path / "server.key")
    files.write(authority.issue_cert("localhost", "127.0.0.1"))
    return files


@pytest.fixture(scope="session")
def error_of() -> Callable[[grpc.RpcError], ErrorStatus]:
    """Return a function that reads the details which a failed call carries."""

    def read(error: grpc.RpcError) -> ErrorStatus:
        return ErrorStatus.from_status(Status.FromString(dict(error.trailing_metadata())[TRAILER]))

    return read


@pytest.fixture
def picture() -> ClassifyRequest:
    return red()


def trap(graph: onnx.ModelProto, brightest: int = 13) -> onnx.ModelProto:
    """Make the graph loop for ages on a picture of this brightest byte, before its logits."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Mul", ["before", "half"], ["after"]),
        ],
        "body",
        [
            value("turn", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("before", TensorProto.FLOAT, []),
        ],
        [value("go_on", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, [])],
    )
    constants = {"half": 0.5, "nothing": 0.0, "unlucky": float(brightest)}
    for name, number in constants.items():
        tensor = helper.make_tensor(name, TensorProto.FLOAT, [], [number])
        graph.graph.initializer.append(tensor)
    for name, number in {"ages": 1 << 62, "no_turns": 0}.items():
        graph.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [], [number]))
    (add,) = (node for node in graph.graph.node if "logits" in node.output)
    add.output[0] = "logits_alone"
    last = list(graph.graph.node).index(add) + 1
    for place, node in enumerate(
        (
            helper.make_node("ReduceMax", ["float"], ["brightest"], keepdims=0),
            helper.make_node("Equal", ["brightest", "unlucky"], ["is_unlucky"]),
            helper.make_node("Where", ["is_unlucky", "ages", "no_turns"], ["turns"]),
            helper.make_node("Loop", ["turns", "", "nothing"], ["zero_after"], body=body),
            helper.make_node("Add", ["logits_alone", "zero_after"], ["logits"]),
        )
    ):
        graph.graph.node.insert(last + place, node)
    onnx.checker.check_model(graph)
    return graph
