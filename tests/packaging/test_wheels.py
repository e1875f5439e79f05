"""The wheels install by themselves, and a server's environment stays small."""

import json
import os
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

pytestmark = pytest.mark.network

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
MEBIBYTE = 2**20
DISTRIBUTIONS = (
    *("proto", "clients", "web", "runtime", "serve"),
    *("bench", "export", "train", "umbrella"),
)


def run(*command: str | Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    return subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, env=environment, cwd=ROOT
    ).stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for distribution in DISTRIBUTIONS:
        # The source distribution, and the wheel that is built from it.
        run(UV, "build", "--quiet", "--out-dir", folder, ROOT / distribution)
    return folder


@pytest.fixture(scope="module")
def environment(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with a server, from wheels."""
    return install(wheels, tmp_path_factory.mktemp("environment"), "foveate[serve]")


def install(wheels: Path, parent: Path, *requirements: str) -> Path:
    """Make an environment with these requirements."""
    folder = parent / "venv"
    run(UV, "venv", "--quiet", "--python", sys.executable, folder)
    run(
        *(UV, "pip", "install", "--quiet", "--python", folder / "bin/python"),
        *("--constraint", ROOT / "constraints.txt", "--find-links", wheels),
        *requirements,
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
    environment = install(wheels, tmp_path, "foveate[serve]", "foveate-runtime[openvino]")
    assert size(environment) <= 500 * MEBIBYTE


def test_a_client_needs_no_engine(wheels: Path, tmp_path: Path) -> None:
    names = packages(install(wheels, tmp_path, "foveate"))
    assert names.isdisjoint({"onnxruntime", "pydantic", "foveate-runtime", "torch", "onnx"})
    assert {"foveate", "foveate-client", "foveate-proto"} <= names


def test_an_exporter_of_onnx_files_needs_no_grpc_server(wheels: Path, tmp_path: Path) -> None:
    names = packages(install(wheels, tmp_path, "foveate-export"))
    assert names.isdisjoint({"grpcio", "prometheus-client", "hpack", "foveate-serve", "torch"})


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_metadata_tells_where_the_project_is(wheels: Path, distribution: str) -> None:
    name = {"clients": "client", "umbrella": ""}.get(distribution, distribution)
    (wheel,) = wheels.glob(f"foveate_{name}-*.whl" if name else "foveate-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(path))
    assert metadata["Version"] == (ROOT / "VERSION").read_text().strip()
    assert metadata["License-File"] == "LICENSE"
    assert metadata.get_all("Project-URL")
    assert metadata.get_all("Classifier")
    assert metadata["Keywords"]


def test_the_command_is_there_and_says_what_is_missing(environment: Path) -> None:
    foveate = environment / "bin/foveate"
    assert "classify" in run(foveate, "--help")
    missing = subprocess.run([foveate, "train"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "pip install foveate-train" in missing.stderr


def test_typed_and_complete(wheels: Path, environment: Path) -> None:
    site = next(environment.glob("lib/python*/site-packages"))
    for package in ("foveate_client", "foveate_runtime", "foveate_serve"):
        assert (site / package / "py.typed").exists()
    assert (site / "foveate/v1/classifier_service_pb2.pyi").exists()
    assert (site / "foveate/v1/classifier_service.proto").exists()
