"""An environment with Ray, which is too large for that of the other tests."""

import os
from pathlib import Path

import pytest

from .environment import make_environment
from .once import made_once

ROOT = Path(__file__).parents[1]


def ray_environment(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of its commands: Foveate's client and server, and Ray's."""

    def make(folder: Path) -> None:
        parts = ("proto", "clients[ray]", "runtime[cpu,images]", "serve[ray]")
        editable = [x for part in parts for x in ("--editable", ROOT / part)]
        make_environment(folder / "venv", "--constraint", ROOT / "constraints.txt", *editable)

    return made_once(factory, "ray", make) / "venv/bin"


def without_ray() -> dict[str, str]:
    """Return the environment's variables without a cluster of Ray."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
