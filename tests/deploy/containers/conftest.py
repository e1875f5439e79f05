"""A Docker client, the images built from Debian alone, and the composition running."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
BASE_IMAGE = "foveate-debian:bookworm"
TAG = "proof"
START_SECONDS = 60


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a command to its end and return what it printed; its log stays on stderr."""
    return subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    ).stdout


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@dataclass(frozen=True)
class Docker:
    """The client `command`."""

    command: str

    def __call__(self, *arguments: str | Path) -> str:
        return run(self.command, *arguments)

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what is known of an image or a container."""
        found: dict[str, Any] = json.loads(self("inspect", name))[0]
        return found

    def build(self, name: str, dockerfile: Path, *options: str, context: Path = ROOT) -> str:
        """Build `name` on the base image; return its full name."""
        tag = f"{name}:{TAG}"
        run(
            *(self.command, "build", "--quiet", "--network", "host", "--tag", tag),
            *("--build-arg", f"BASE_IMAGE={BASE_IMAGE}", "--file", dockerfile),
            *options,
            context,
            environment={"DOCKER_BUILDKIT": "1"},
        )
        return tag

    def wait_for(self, container: str, event: str) -> None:
        """Wait until `event` has happened to a container, now or before."""
        started = self.inspect(container)["Created"]
        command = [self.command, "events", "--since", started, "--format", "{{.Action}}"]
        command += ["--filter", f"container={container}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as events:
            try:
                assert any(line.strip() == event for line in events.stdout)
            finally:
                events.terminate()


@dataclass(frozen=True)
class Composition:
    """The services of docker-compose.yml, as a project of its own."""

    docker: Docker
    project: str
    files: tuple[Path, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str) -> str:
        files = [word for path in self.files for word in ("--file", str(path))]
        return run(
            *compose_command(self.docker),
            *("--project-name", self.project, "--project-directory", str(ROOT)),
            *files,
            *arguments,
            environment=self.variables,
        )

    def up(self, *services: str) -> None:
        self("up", "--detach", "--no-build", *services)

    def down(self) -> None:
        self("down", "--volumes", "--remove-orphans")

    def container(self, service: str) -> str:
        """Return the id of a service's container."""
        return self("ps", "--quiet", service).strip()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.variables['PORT']}"

    @property
    def prometheus(self) -> str:
        return f"http://127.0.0.1:{self.variables['PROMETHEUS_PORT']}"


def compose_command(docker: Docker) -> tuple[str, ...]:
    plugin = subprocess.run(
        [docker.command, "compose", "version"], capture_output=True, check=False
    )
    return ("docker-compose",) if plugin.returncode else (docker.command, "compose")


@pytest.fixture(scope="session")
def docker() -> Docker:
    """Return the first client on the PATH that has BuildKit and reaches a daemon."""
    folders = os.environ["PATH"].split(os.pathsep)
    found = dict.fromkeys(filter(None, (shutil.which("docker", path=path) for path in folders)))
    for command in found:
        build = subprocess.run(
            [command, "build", "--help"],
            env={**os.environ, "DOCKER_BUILDKIT": "1"},
            capture_output=True,
            check=False,
        )
        if build.returncode == 0:
            run(command, "info")
            return Docker(command)
    raise RuntimeError(f"no docker client has BuildKit: {', '.join(found) or 'there is none'}")


@pytest.fixture(scope="session")
def base_image(docker: Docker) -> str:
    """Make the base image of Debian alone, unless there is one from an earlier run."""
    if not docker("images", "--quiet", BASE_IMAGE):
        run(
            ROOT / "deploy/docker/debian-base.sh",
            BASE_IMAGE,
            environment={"DOCKER": docker.command},
        )
    return BASE_IMAGE


@pytest.fixture(scope="session")
def server_image(docker: Docker, base_image: str) -> str:
    return docker.build("foveate-serve-cpu", DOCKERFILE, "--target", "serve-cpu")


@pytest.fixture(scope="session")
def openvino_image(docker: Docker, base_image: str) -> str:
    options = ("--target", "serve-cpu", "--build-arg", "SERVE_EXTRAS=cpu,images,openvino,tracing")
    return docker.build("foveate-serve-openvino", DOCKERFILE, *options)


@pytest.fixture(scope="session")
def client_image(docker: Docker, base_image: str) -> str:
    return docker.build("foveate-client", DOCKERFILE, "--target", "client")


@pytest.fixture(scope="session")
def prometheus_image(docker: Docker, base_image: str) -> str:
    return docker.build("foveate-prometheus", HERE / "prometheus.Dockerfile", context=HERE)


@pytest.fixture(scope="session")
def exported(imagenet_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the repository where every user may read it, as that of a container must."""
    folder = shutil.copytree(imagenet_repository, tmp_path_factory.mktemp("exported") / "models")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of photographs that every user may read."""
    folder = tmp_path_factory.mktemp("photographs")
    folder.chmod(0o755)
    for name in ("coffee", "chelsea", "rocket"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def variables(exported: Path, photographs: Path) -> dict[str, str]:
    return {
        "TAG": TAG,
        "EXPORTED": str(exported),
        "PICTURES": str(photographs),
        "BENCH_SECONDS": "2",
    }


@pytest.fixture(scope="module")
def composition(
    docker: Docker,
    server_image: str,
    client_image: str,
    prometheus_image: str,
    variables: dict[str, str],
) -> Iterator[Composition]:
    """Start the server and Prometheus as docker-compose.yml says, and wait for the server."""
    composition = Composition(
        docker,
        f"foveate-proof-{os.getpid()}",
        (ROOT / "docker-compose.yml", HERE / "compose.yml"),
        {**variables, "PORT": free_port(), "PROMETHEUS_PORT": free_port()},
    )
    try:
        composition.up("server", "prometheus")
        yield composition
    finally:
        composition.down()
