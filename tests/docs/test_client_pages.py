"""Every snippet of docs/client/ runs, and prints what the page says.

In a page, each ```python and each ```bash block is a program of its own; all of
a page's run in their order, in one folder that holds cat.jpg, coffee.jpg,
photographs/<label>/*.jpg and the repository models/. A server of models/ is at
localhost:50051. A ```text block right after a program is what it prints, where
numbers and bars may differ.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image
from skimage import data

PAGES = sorted((Path(__file__).parents[2] / "docs/client").glob("*.md"))
ADDRESS = "localhost:50051"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
LIMIT_SECONDS = 120


class Program(NamedTuple):
    language: str
    source: str
    output: str | None
    line: int


def programs(page: Path) -> list[Program]:
    text = page.read_text(encoding="utf-8")
    return [
        Program(match[1], match[2], match[3], text.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(text)
        if match[1] in {"python", "bash"}
    ]


def shape(output: str) -> list[str]:
    """Return the words of `output`, with every number and bar alike."""
    return re.sub(r"[\d.,]*\d%?", "N", re.sub("[█▉▊▋▌▍▎▏]+", "", output)).split()


@pytest.fixture
def folder(tmp_path: Path, imagenet_repository: Path) -> Path:
    (tmp_path / "models").symlink_to(imagenet_repository)
    cat, coffee, rocket = (
        Image.fromarray(picture) for picture in (data.chelsea(), data.coffee(), data.rocket())
    )
    cat.save(tmp_path / "cat.jpg", quality=95)
    coffee.save(tmp_path / "coffee.jpg", quality=95)
    for label, picture in {"tabby": cat, "espresso": coffee, "missile": rocket}.items():
        (tmp_path / "photographs" / label).mkdir(parents=True)
        picture.save(tmp_path / "photographs" / label / "1.jpg", quality=95)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_snippets_run(page: Path, folder: Path, imagenet_server: str) -> None:
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
    }
    found = programs(page)
    assert found, f"{page.name} shows no program"
    for program in found:
        source = program.source.replace(ADDRESS, imagenet_server)
        command = {
            "python": [sys.executable, "-W", "error", "-c", source],
            "bash": ["bash", "-euo", "pipefail", "-c", source],
        }[program.language]
        run = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        place = f"{page.name}, line {program.line}"
        assert run.returncode == 0, f"{place}:\n{run.stderr}"
        if program.output is not None:
            assert shape(run.stdout) == shape(program.output), f"{place} prints:\n{run.stdout}"
