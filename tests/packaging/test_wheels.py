"""The wheels install by themselves, and a server's environment stays small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
MEBIBYTE = 2**20


def run(*command: str | Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    return subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, env=environment, cwd=ROOT
    ).stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for distribution in ("proto", "clients", "serve"):
        run(UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT / distribution)
    return folder


@pytest.fixture(scope="module")
def environment(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the server and the client, from wheels."""
    return install(wheels, tmp_path_factory.mktemp("environment"), "cpu")


def install(wheels: Path, parent: Path, extras: str) -> Path:
    """Make an environment with these extras of the server."""
    folder = parent / "venv"
    run(UV, "venv", "--quiet", "--python", sys.executable, folder)
    serve = next(wheels.glob("foveate_serve-*.whl"))
    run(
        *(UV, "pip", "install", "--quiet", "--python", folder / "bin/python"),
        *("--constraint", ROOT / "constraints.txt", "--find-links", wheels),
        *(f"foveate-serve[{extras}] @ {serve.as_uri()}", "foveate-client"),
    )
    return folder


def packages(environment: Path) -> set[str]:
    listing = run(
        UV, "pip", "list", "--quiet", "--format=json", "--python", environment / "bin/python"
    )
    return {package["name"] for package in json.loads(listing)}


def test_a_server_needs_no_torch(environment: Path) -> None:
    assert packages(environment).isdisjoint({"torch", "torchvision", "timm", "onnx"})


def size(environment: Path) -> int:
    files = {
        (status.st_dev, status.st_ino): status.st_size
        for path in environment.rglob("*")
        if path.is_file() and (status := path.stat())
    }
    return sum(files.values())


def test_a_server_takes_at_most_300_mebibytes(environment: Path) -> None:
    assert size(environment) <= 300 * MEBIBYTE


def test_a_server_with_both_engines_takes_at_most_500_mebibytes(
    wheels: Path, tmp_path: Path
) -> None:
    assert size(install(wheels, tmp_path, "cpu,openvino")) <= 500 * MEBIBYTE


def test_the_command_is_there_and_says_what_is_missing(environment: Path) -> None:
    foveate = environment / "bin/foveate"
    assert "classify" in run(foveate, "--help")
    missing = subprocess.run([foveate, "train"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "pip install foveate-train" in missing.stderr


def test_typed_and_complete(wheels: Path, environment: Path) -> None:
    site = next(environment.glob("lib/python*/site-packages"))
    for package in ("foveate_client", "foveate_serve"):
        assert (site / package / "py.typed").exists()
    assert (site / "foveate/v1/classifier_service_pb2.pyi").exists()
    assert (site / "foveate/v1/classifier_service.proto").exists()
