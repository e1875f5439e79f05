"""ONNX Runtime tells nobody that it runs, unless the user says so."""

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from ...conftest import FOVEATE


def kept(home: Path, repository: Path, **variables: str) -> list[str]:
    """Classify a photograph in a process of its own; return the files left in its home."""
    photograph = home.parent / "coffee.jpg"
    Image.fromarray(data.coffee()).save(photograph)
    home.mkdir()
    # In continuous integration ONNX Runtime is silent by itself.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in {"CI", "ORT_DISABLE_TELEMETRY"}
    }
    subprocess.run(
        [FOVEATE, "classify", photograph, "--repository", repository],
        env={**inherited, "HOME": str(home), "XDG_CACHE_HOME": str(home), **variables},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return [path.name for path in home.rglob("*") if path.is_file()]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_no_identifier_of_the_machine_is_kept(home: Path, imagenet_repository: Path) -> None:
    assert kept(home, imagenet_repository) == []


def test_export_is_silent_too() -> None:
    code = "import os, foveate_export; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    python = FOVEATE.with_name("python")
    silent = subprocess.run(
        [python, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert silent.stdout == "1\n"
