"""What `foveate visualize ... --help` says."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from foveate_train.commands.visualize import COMMANDS, main

DOCS = Path(__file__).parents[3] / "docs"
TYPED = [
    line.strip()
    for page in ("train/visualize.md", "gallery.md")
    for line in (DOCS / page).read_text().splitlines()
    if line.startswith("    foveate visualize ") and " KIND " not in line
]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kind_ends_in_an_example_that_it_takes(name, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    example = shlex.split(capsys.readouterr().out.rpartition("example:\n  ")[2])
    assert example[:3] == ["foveate", "visualize", name]
    taken = []
    command = replace(COMMANDS[name], run=lambda options: taken.append(options) or 0)
    monkeypatch.setitem(COMMANDS, name, command)
    assert main(example[2:]) == 0
    assert isinstance(taken[0], command.options)


@pytest.mark.parametrize("line", TYPED)
def test_the_commands_of_the_pages_are_taken(line, monkeypatch):
    _, _, name, *words = shlex.split(line)
    taken = []
    command = replace(COMMANDS[name], run=lambda options: taken.append(options) or 0)
    monkeypatch.setitem(COMMANDS, name, command)
    assert main([name, *words]) == 0
    assert isinstance(taken[0], command.options)


def test_every_kind_is_on_the_page():
    assert {line.split()[2] for line in TYPED} == set(COMMANDS)


def test_every_kind_is_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)
