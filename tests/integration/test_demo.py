"""The demonstration, from bundles that are there already."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from PIL import Image

from ..conftest import FOVEATE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def out(imagenet_repository: Path, tmp_path: Path) -> Path:
    """The folder of a run before, whose checkpoint and bundles are kept."""
    repository = shutil.copytree(imagenet_repository, tmp_path / "repository")
    command = [FOVEATE, "export", "foveate:convnet4", "--weights", "random:0"]
    subprocess.run([*command, "--repository", repository, "--name", "mnist"], check=True)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "checkpoint.json").touch()
    (tmp_path / "server.txt").write_text("foveate serving 2 models on 127.0.0.1:9\n")
    return tmp_path


def test_it_draws_the_pictures_and_leaves_no_server(out: Path) -> None:
    environment = {**os.environ, "VENV": str(Path(sys.executable).parents[1])}
    subprocess.run([ROOT / "scripts/demo.sh", out], check=True, env=environment)
    for name in ("digit", "photograph"):
        pictures = sorted((out / name).glob("*.png"))
        assert pictures
        for picture in pictures:
            with Image.open(picture) as opened:
                opened.verify()
    address = (out / "server.txt").read_text(encoding="utf-8").split()[-1]
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=0.5)
