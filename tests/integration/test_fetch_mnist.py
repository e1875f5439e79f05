"""MNIST on a machine that reaches no more than registries of packages."""

import os
import subprocess
import sys
from pathlib import Path

from foveate_train.data import mnist

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_mnist.sh"


def _fetch(cache: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "FOVEATE_MNIST_DIR"}
    environment |= {"VENV": str(Path(sys.executable).parents[1]), "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(
        [SCRIPT], env=environment | more, capture_output=True, text=True, check=False
    )


def test_an_empty_cache_is_filled(tmp_path: Path, monkeypatch) -> None:
    done = _fetch(tmp_path)
    assert done.returncode == 0, done.stderr
    monkeypatch.delenv("FOVEATE_MNIST_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert {path.name for path in mnist.cache_folder().iterdir()} == set(mnist.FILES)
    assert len(mnist.load("train")[0]) == 60_000


def test_a_cache_that_is_full_needs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "foveate" / "mnist"
    folder.mkdir(parents=True)
    for name in mnist.FILES:
        (folder / name).touch()
    assert _fetch(tmp_path, VENV=str(tmp_path)).returncode == 0
