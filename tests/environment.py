"""An environment of Python beside the tests' own, for libraries that are not of the project."""

import os
import subprocess
import sys
from pathlib import Path

UV = Path(sys.executable).with_name("uv")


def make_environment(folder: Path, *requirements: str | Path) -> Path:
    """Make an environment with what `uv pip install` is given; return its Python."""
    variables = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    python = folder / "bin/python"
    for command in (
        ("venv", "--relocatable", "--python", sys.executable, folder),
        ("pip", "install", "--python", python, *requirements),
    ):
        subprocess.run([UV, *command, "--quiet"], check=True, env=variables)
    return python
