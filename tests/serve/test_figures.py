"""Figures are numbers by name and labels, and those in files outlive their process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from foveate_serve import figures as module
from foveate_serve.figures import Figures, read_figures

COUNT = """
import os, signal, sys
from pathlib import Path
from foveate_serve.figures import Figures
figures = Figures(Path(sys.argv[1]))
figures.slots("requests", ("cat", "1"))[0] += 3
figures.slots("seconds", ("cat", "1"), 2)[1] += 0.5
os.kill(os.getpid(), signal.SIGKILL)
"""


def found(folder: Path) -> list[dict]:
    return [{key: list(values) for key, values in all_} for _, all_ in read_figures(folder)]


def test_a_name_and_labels_are_always_the_same_numbers() -> None:
    figures = Figures()
    figures.slots("a", ("x",), 2)[1] += 2
    figures.slots("a", ("y",), 2)[0] += 1
    figures.slots("a", ("x",), 2)[1] += 3
    assert {key: list(values) for key, values in figures.items()} == {
        ("a", ("x",)): [0, 5],
        ("a", ("y",)): [1, 0],
    }


def test_what_is_forgotten_starts_from_zero() -> None:
    figures = Figures()
    figures.slots("a", ("x", "1"))[0] = 7
    figures.slots("a", ("y", "1"))[0] = 8
    figures.forget(("x",))
    assert list(figures.slots("a", ("x", "1"))) == [0]
    assert list(figures.slots("a", ("y", "1"))) == [8]


def test_what_a_killed_process_has_counted_is_read(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", COUNT, tmp_path], check=False)
    assert child.returncode == -signal.SIGKILL
    mine = Figures(tmp_path)
    mine.slots("requests", ("cat", "1"))[0] += 4
    assert {process for process, _ in read_figures(tmp_path)} > {os.getpid()}
    assert sorted(found(tmp_path), key=str) == [
        {("requests", ("cat", "1")): [3], ("seconds", ("cat", "1")): [0, 0.5]},
        {("requests", ("cat", "1")): [4]},
    ]


def test_half_a_line_of_a_killed_process_is_passed_over(tmp_path: Path) -> None:
    Figures(tmp_path).slots("requests", ("cat", "1"))[0] += 1
    (names,) = tmp_path.glob("*.names")
    with names.open("a", encoding="utf-8") as file:
        file.write('["seconds", ["ca')
    assert found(tmp_path) == [{("requests", ("cat", "1")): [1]}]


def test_more_figures_than_a_file_holds_have_another(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 4)
    figures = Figures(tmp_path)
    for number in range(5):
        figures.slots("a", (str(number),), 3)[2] = number
    assert found(tmp_path) == [{("a", (str(n),)): [0, 0, n] for n in range(5)}]
    assert len(list(tmp_path.glob("*.values"))) == 5
