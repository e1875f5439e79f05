"""A page over a real server, each in a process of its own."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from ..conftest import FOVEATE, served
from ..once import made_once
from .looking import Look, looking

HOSTILE = "${document.title='taken'} {{value}} <img src=x onerror=\"document.title='taken'\">"
"""What no label does to a page."""


@contextmanager
def shown(address: str, *arguments: str) -> Iterator[str]:
    """Run `foveate web` for the server at `address`; yield the page's address."""
    command = [FOVEATE, "web", "--address", address, "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line, f"foveate web ended with {process.wait()} before it was ready"
            yield line.split()[-1]
        finally:
            process.terminate()
        assert process.wait() == 0


@pytest.fixture(scope="session")
def models(imagenet_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put a model of digits beside the ImageNet classifier."""

    def make(folder: Path) -> None:
        models, labels = folder / "models", folder / "labels.txt"
        shutil.copytree(imagenet_repository, models)
        labels.write_text("".join(f"{n} {HOSTILE}\n" for n in range(10)), encoding="utf-8")
        command = [FOVEATE, "export", "foveate:convnet4", "--weights", "random:0"]
        command += ["--repository", models, "--name", "digits", "--labels", labels]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return made_once(tmp_path_factory, "web", make) / "models"


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[str]:
    with served(models) as address:
        yield address


@pytest.fixture(scope="session")
def address(server: str) -> Iterator[str]:
    """Return the page's address."""
    with shown(server) as page:
        yield page


@pytest.fixture(scope="session")
def _window(address: str) -> Iterator[Look]:
    with looking(address) as window:
        yield window


@pytest.fixture
def page(_window: Look) -> Look:
    """Return a window onto the page, opened anew."""
    _window.open()
    _window.refused()  # what the test before met is its own
    return _window


@pytest.fixture(scope="session")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph of a cat that is not as large as the example."""
    path = tmp_path_factory.mktemp("photograph") / "cat.jpg"
    Image.fromarray(data.chelsea()[:, 40:]).save(path, quality=95)
    return path
