"""HTTP on a real server: the page's lines, and the Open Inference Protocol's reference client."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from ..environment import make_environment
from .conftest import Server, running
from .test_open_inference import material  # noqa: F401 - a fixture

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/serving/http.md"
FENCE = re.compile(r"^```bash\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("http") / "log"
    with running(repository, log, "--http-address", "127.0.0.1:0") as server:
        yield server
        assert server.process.poll() is None


def address_of(server: Server) -> str:
    found = re.search(r"HTTP on http://([0-9.:]+)", server.log.read_text(encoding="utf-8"))
    assert found
    return found[1]


def alike(text: str) -> str:
    return re.sub(r"-?\d+\.\d+", "N", text)


def test_the_lines_of_the_page_print_what_it_says(server: Server, tmp_path: Path) -> None:
    Image.fromarray(data.coffee()).save(tmp_path / "coffee.jpg", quality=95)
    programs = FENCE.findall(PAGE.read_text(encoding="utf-8"))
    assert len(programs) == 6
    for source, output in programs:
        done = subprocess.run(
            [
                "bash",
                "-euo",
                "pipefail",
                "-c",
                source.replace("localhost:8080", address_of(server)),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert alike(done.stdout.strip()) == alike(output.strip())
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.format == "PNG"


@pytest.fixture(scope="module")
def client_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment with tritonclient for HTTP; its Python."""
    folder = tmp_path_factory.mktemp("tritonclient") / "venv"
    return make_environment(folder, "--requirement", HERE / "open_inference_http_requirements.txt")


def check(python: Path, address: str, folder: Path, name: str) -> None:
    command = [python, HERE / "open_inference_http_client.py", address, folder, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.network
@pytest.mark.parametrize(
    "name",
    [
        "metadata",
        "repository",
        "statistics",
        "raw_tensors",
        "encoded_files",
        "maps",
        "errors",
        "async_requests",
    ],
)
def test_tritonclient(server: Server, client_python: Path, material: Path, name: str) -> None:  # noqa: F811
    check(client_python, address_of(server), material, name)


@pytest.mark.network
def test_tritonclient_loads_and_unloads(
    start: Callable,
    own_repository: Path,
    client_python: Path,
    material: Path,  # noqa: F811
) -> None:
    server = start(own_repository, "--admin", "--http-address", "127.0.0.1:0")
    check(client_python, address_of(server), material, "control")
