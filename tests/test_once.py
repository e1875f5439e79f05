from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .once import made_once


def test_all_who_need_a_folder_at_once_have_the_same_made_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("whole")

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: made_once(tmp_path_factory, "at_once", make), range(8)))
    assert len(made) == len(found) == 1
    assert [file.read_text() for file in found.pop().iterdir()] == ["whole"]


def test_what_could_not_be_made_is_not_there_and_is_made_by_the_next(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        made_once(tmp_path_factory, "twice", fail)
    found = made_once(tmp_path_factory, "twice", lambda folder: (folder / "whole").touch())
    assert [file.name for file in found.iterdir()] == ["whole"]
