"""The client runs with the oldest versions that it admits, and with both majors of protobuf."""

import json
import os
import subprocess
import sys
from pathlib import Path

import google.protobuf
import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")

PROGRAM = """
import asyncio, json, sys
from importlib.metadata import version
from foveate_client import AsyncClient, Cam, Client, InvalidArgumentError

address, picture, folder = sys.argv[1:]
with Client(address) as client:
    result = client.classify(picture, cam=Cam(top=2), feature_maps=["blocks.1"], timing=True)
    result.cams[0].overlay(picture).save(f"{folder}/overlay.png")
    result.feature_maps[0].save(f"{folder}/sheet.png")
    streamed = [x.predictions[0].label for x in client.classify_many([picture] * 3, in_flight=2)]
    try:
        client.classify(picture, top_k=0)
    except InvalidArgumentError as error:
        fields = [violation.field for violation in error.field_violations]

async def again():
    async with AsyncClient(address) as client:
        return (await client.classify(picture)).predictions[0].label

print(json.dumps({
    "label": result.predictions[0].label,
    "score": result.predictions[0].score,
    "peak": result.cams[0].peak,
    "streamed": streamed,
    "asynchronous": asyncio.run(again()),
    "fields": fields,
    "versions": {name: version(name) for name in
                 ("grpcio", "protobuf", "numpy", "pillow", "rich", "googleapis-common-protos")},
}))
"""


def run(*command: str | Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    return subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE, env=environment, cwd=ROOT
    ).stdout


def classify(python: Path, address: str, picture: Path, folder: Path) -> dict:
    folder.mkdir()
    answer = json.loads(run(python, "-W", "error", "-c", PROGRAM, address, picture, folder))
    assert (folder / "overlay.png").stat().st_size > 0
    assert (folder / "sheet.png").stat().st_size > 0
    return answer


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the lowest versions that the client's bounds allow."""
    folder = tmp_path_factory.mktemp("oldest")
    wheels, python = folder / "wheels", folder / "venv/bin/python"
    for distribution in ("proto", "clients"):
        run(UV, "build", "--quiet", "--wheel", "--out-dir", wheels, ROOT / distribution)
    run(UV, "venv", "--quiet", "--python", sys.executable, folder / "venv")
    install = (UV, "pip", "install", "--quiet", "--python", python)
    run(
        *(*install, "--resolution", "lowest-direct", "--find-links", wheels),
        *("-r", ROOT / "proto/pyproject.toml", "-r", ROOT / "clients/pyproject.toml"),
    )
    run(*install, "--no-deps", next(wheels.glob("foveate_client-*.whl")))
    return python


def test_the_oldest_versions_answer_as_the_newest_do(oldest, imagenet_server, chelsea, tmp_path):
    old = classify(oldest, imagenet_server, chelsea, tmp_path / "old")
    new = classify(Path(sys.executable), imagenet_server, chelsea, tmp_path / "new")
    versions = old.pop("versions")
    assert {name: versions[name] for name in ("grpcio", "protobuf", "numpy", "pillow")} == {
        "grpcio": "1.74.0",
        "protobuf": "6.31.1",
        "numpy": "1.26.0",
        "pillow": "10.4.0",
    }
    assert new.pop("versions")["protobuf"].startswith("7.")
    assert google.protobuf.__version__.startswith("7.")
    assert old == new
    assert old["label"] in {"tabby", "tiger cat", "Egyptian cat"}
    assert old["streamed"] == [old["label"]] * 3
    assert old["fields"] == ["top_k"]
