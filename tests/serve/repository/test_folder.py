"""A look at a repository's folder, whatever lies in it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from foveate_runtime.bundle.folder import look, look_at


def test_a_deep_tree_in_one_version_hides_no_other(
    write_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(name="sound")
    monkeypatch.chdir(write_bundle(name="deep"))
    for _ in range(1500):
        Path("d").mkdir()
        os.chdir("d")
    found = look(tmp_path / "repository")
    # Python's own way to remove it is not made for such depths.
    subprocess.run(["rm", "-r", tmp_path / "repository" / "deep"], check=True)
    assert list(found["sound"].versions) == [1]
    assert list(found["deep"].versions | found["deep"].unreadable) == [1]


@pytest.mark.parametrize("name", ["", ".", "..", "../repository", "colours/1", "\0", "x" * 200])
def test_only_names_of_models_are_looked_at(
    write_bundle: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    write_bundle()
    assert look_at(tmp_path / "repository", name) is None


def test_a_link_to_files_that_change_is_another_sighting(
    write_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_bundle()
    data = (path / "model.onnx").rename(tmp_path / "data")
    (path / "model.onnx").symlink_to(data)

    def sighting() -> object:
        return look(tmp_path / "repository")["colours"].versions[1]

    before = sighting()
    assert sighting() == before
    os.utime(data, ns=(1, 1))
    assert sighting() != before
    data.unlink()
    assert sighting() != before
