"""The notebooks run from the first cell to the last, one after the other in one folder."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

DOCS = Path(__file__).parents[2] / "docs"
ORDER = ("train", "layers", "cam", "export", "serve", "trust")
LIMIT_SECONDS = 1800


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the kernels the commands, and folders of their own."""
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))


def test_every_notebook_is_run_and_listed() -> None:
    files = {path.stem for path in (DOCS / "notebooks").glob("*.py")}
    assert files == set(ORDER)
    listed = (DOCS / "notebooks" / "README.md").read_text(encoding="utf-8")
    places = [listed.index(f"]({name}.py)") for name in ORDER]
    assert places == sorted(places)


def run(notebook: nbformat.NotebookNode, folder: Path, name: str) -> nbformat.NotebookNode:
    """Return the notebook with its outputs; it runs in `folder`, in a process of its own."""
    # What a machine has installed under this name is not asked: `python3` is this interpreter.
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python"}
    file = folder / f"{name}.ipynb"
    nbformat.write(notebook, file)
    command = [
        *(Path(sys.executable).with_name("jupyter-execute"), file),
        *("--inplace", f"--timeout={LIMIT_SECONDS}"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return nbformat.read(file, as_version=4)


@pytest.mark.parametrize("name", ORDER)
def test_a_notebook_runs(name: str, folder: Path) -> None:
    notebook = jupytext.read(DOCS / "notebooks" / f"{name}.py")
    ran = run(notebook, folder, name)
    shown = [output for cell in ran.cells for output in cell.get("outputs", ())]
    assert shown
    if name == "serve":
        assert sum("text/html" in output.get("data", {}) for output in shown) == 2


def test_the_worked_examples_run(folder: Path) -> None:
    notebook = nbformat.read(DOCS / "studies/arithmetic/arithmetic.ipynb", as_version=4)
    ran = run(notebook, folder, "arithmetic")
    assert any(cell.get("outputs") for cell in ran.cells)
