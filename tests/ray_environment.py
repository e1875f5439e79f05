"""An environment with Ray, which is too large for that of the other tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .once import made_once

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")


def ray_environment(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of its commands: Foveate's client and server, and Ray's."""

    def make(folder: Path) -> None:
        parts = ("proto", "clients[ray]", "runtime[cpu,images]", "serve[ray]")
        install = [x for part in parts for x in ("--editable", ROOT / part)]
        for command in (
            ("venv", "--relocatable", "--python", sys.executable, folder / "venv"),
            ("pip", "install", "--python", folder / "venv/bin/python", *install),
        ):
            subprocess.run(
                [UV, *command, "--quiet"],
                check=True,
                env={**os.environ, "UV_CONSTRAINT": str(ROOT / "constraints.txt")},
                cwd=ROOT,
            )

    return made_once(factory, "ray", make) / "venv/bin"


def without_ray() -> dict[str, str]:
    """Return the environment's variables without a cluster of Ray."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
