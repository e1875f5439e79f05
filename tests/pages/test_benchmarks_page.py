"""The list of benchmarks is whole."""

import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_every_module_is_listed_once() -> None:
    listed = re.findall(r"^\| \[`(\w+)`\]", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(file.stem for file in FOLDER.glob("[!_]*.py"))
