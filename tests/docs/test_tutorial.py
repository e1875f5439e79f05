"""The tutorial's blocks run in their order, with fewer pictures and epochs."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet

from ..conftest import FOVEATE, served

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
ADDRESS = "127.0.0.1:50051"
SERVE = f"foveate serve --repository models --address {ADDRESS}\n"
SMALLER = {
    '40 if part == "textures" else 10': '10 if part == "textures" else 4',
    "--epochs 3": "--epochs 1",
}
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> Iterator[tuple[str, str]]:
    text = PAGE.read_text(encoding="utf-8")
    for usual, smaller in SMALLER.items():
        assert usual in text
        text = text.replace(usual, smaller)
    yield from BLOCK.findall(text)


def run(language: str, block: str, folder: Path) -> str:
    """Run a block in the folder; return what it prints on stdout."""
    command = [sys.executable, "-"] if language == "python" else ["sh", "-eu"]
    path = f"{FOVEATE.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        input=block,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stderr}"
    return done.stdout


def test_the_tutorial_runs_in_its_order(tmp_path: Path) -> None:
    every = list(blocks())
    place = every.index(("sh", SERVE))
    said = {block: run(language, block, tmp_path) for language, block in every[:place]}
    (evaluated,) = (stdout for block, stdout in said.items() if "foveate evaluate" in block)
    shown = re.search(
        r"^```text\n(textures version .*\n)```", PAGE.read_text("utf-8"), re.MULTILINE
    )
    assert shown
    first, shown_first = (re.sub(r"[\d.]+", "N", x).splitlines()[0] for x in (evaluated, shown[1]))
    assert first == shown_first
    with served(tmp_path / "models") as address:
        for language, block in every[place + 1 :]:
            run(language, block.replace(ADDRESS, address), tmp_path)
    maps = {file.name for file in (tmp_path / "explained").glob("00.cam.?.png")}
    assert maps == {"00.cam.1.png", "00.cam.2.png"}
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert pyarrow.parquet.read_table(tmp_path / "unseen.parquet").num_rows == 12
