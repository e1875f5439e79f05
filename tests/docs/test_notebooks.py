"""The notebooks run from the first cell to the last, one after the other in one folder."""

import os
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
ORDER = ("train", "layers", "cam", "export", "serve", "trust")
LIMIT_SECONDS = 1800


class Kernel(AsyncKernelManager):
    """Runs this interpreter, whatever kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python", language="python")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the kernels the commands, two threads, and folders of their own."""
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))


def test_every_notebook_is_run_and_listed() -> None:
    files = {path.stem for path in (DOCS / "notebooks").glob("*.py")}
    assert files == set(ORDER)
    listed = (DOCS / "notebooks" / "README.md").read_text(encoding="utf-8")
    places = [listed.index(f"]({name}.py)") for name in ORDER]
    assert places == sorted(places)


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    manager = Kernel()
    client = NotebookClient(
        notebook, km=manager, timeout=LIMIT_SECONDS, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()


@pytest.mark.parametrize("name", ORDER)
def test_a_notebook_runs(name: str, folder: Path) -> None:
    notebook = jupytext.read(DOCS / "notebooks" / f"{name}.py")
    run(notebook, folder)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert shown
    if name == "serve":
        assert sum("text/html" in output.get("data", {}) for output in shown) == 2


def test_the_worked_examples_run(folder: Path) -> None:
    notebook = nbformat.read(DOCS / "studies/arithmetic/arithmetic.ipynb", as_version=4)
    run(notebook, folder)
    assert any(cell.get("outputs") for cell in notebook.cells)
