"""A network as a picture of its blocks."""

import sys

import graphviz
import pytest

from foveate_train import graph


@pytest.fixture
def source(monkeypatch):
    """What would be handed to `dot`, which need not be installed."""
    found = []

    def pipe(self, format):  # noqa: A002  graphviz's name
        found.append((format, self.source))
        return b"drawn"

    monkeypatch.setattr(graphviz.Digraph, "pipe", pipe)
    return found


def test_blocks_have_shapes_and_parameters(source, tmp_path):
    file = tmp_path / "lenet5.svg"
    assert graph.main("foveate:lenet5", str(file)) == 0
    assert file.read_bytes() == b"drawn"
    ((kind, text),) = source
    assert kind == "svg"
    assert "c1" in text
    assert "156 parameters" in text  # 6 filters of 25 weights and a bias
    assert "850 parameters" in text  # 84 to 10
    assert "(1, 1, 28, 28)" in text
    assert "(1, 10)" in text


def test_a_missing_layout_program_is_named_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert graph.main("foveate:lenet5", str(tmp_path / "lenet5.svg")) == 1
    error = capsys.readouterr().err
    assert error.startswith("foveate models: a graph needs the program dot")
    assert error.count("\n") == 1
    assert not (tmp_path / "lenet5.svg").exists()


def test_a_missing_package_is_named_with_its_pip_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torchview", None)
    assert graph.main("foveate:lenet5", str(tmp_path / "lenet5.svg")) == 1
    assert 'pip install "foveate-train[graphs]"' in capsys.readouterr().err


def test_what_cannot_be_drawn_is_refused(source, tmp_path, capsys):
    assert graph.main("foveate:lenet5", str(tmp_path / "lenet5.txt")) == 2
    assert "must end with .svg, .png, .pdf" in capsys.readouterr().err
    assert graph.main("foveate:lenet6", str(tmp_path / "lenet6.svg")) == 1
    assert "foveate:lenet5" in capsys.readouterr().err
    assert graph.main("foveate:lenet5", str(tmp_path / "missing" / "lenet5.svg")) == 1
    assert "cannot be written" in capsys.readouterr().err
