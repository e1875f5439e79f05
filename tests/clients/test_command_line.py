import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints, PackageNotFoundError
from pathlib import Path

import pytest

from foveate_client import _plugins, cli


@pytest.fixture
def installed(monkeypatch):
    """Pretend that nothing is installed but the client, with these subcommands."""

    def pretend(**commands):
        points = EntryPoints(
            EntryPoint(name=name, group="foveate.commands", value=f"{name}:main")
            for name in commands
        )
        monkeypatch.setattr(_plugins, "entry_points", points.select)
        monkeypatch.setattr(cli, "entry_points", points.select)
        monkeypatch.setattr(EntryPoint, "load", lambda self: commands[self.name])

        def version(distribution):
            if distribution != "foveate-client":
                raise PackageNotFoundError(distribution)
            return "1.2.3"

        monkeypatch.setattr(cli, "version", version)

    return pretend


def test_a_command_gets_its_arguments_and_gives_its_code(installed):
    given = []

    def classify(arguments):
        given.extend(arguments)
        return 7

    installed(classify=classify)
    assert cli.main(["classify", "cat.jpg", "--json"]) == 7
    assert given == ["cat.jpg", "--json"]


def test_help_lists_what_is_there_and_what_could_be(installed, capsys):
    installed(classify=len, sketch=len)
    assert cli.main(["--help"]) == 0
    help_text = capsys.readouterr().out
    there, _, could_be = help_text.partition("not installed:")
    assert "classify   classify pictures" in there
    assert "sketch" in there
    assert "(pip install foveate-train)" in could_be
    assert "(pip install 'foveate-serve[cpu]')" in could_be
    # Of this distribution, and without an entry point: such a command does not exist.
    assert "batch" not in help_text


def test_no_command_is_wrong_usage(installed, capsys):
    installed(classify=len)
    assert cli.main([]) == 2
    assert "usage: foveate COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "line"),
    [("serve", "pip install 'foveate-serve[cpu]'"), ("export", "pip install foveate-export")],
)
def test_a_command_that_is_not_installed_prints_its_pip_line(installed, capsys, command, line):
    installed(classify=len)
    assert cli.main([command, "--help"]) == 1
    assert line in capsys.readouterr().err


def test_an_unknown_command_names_its_neighbours(installed, capsys):
    installed(classify=len, models=len)
    assert cli.main(["clasify"]) == 2
    assert "no command 'clasify'; did you mean classify?" in capsys.readouterr().err
    assert cli.main(["xyzzy"]) == 2
    assert "did you mean classify or models?" in capsys.readouterr().err


def test_the_version_is_that_of_every_distribution_there_is(installed, capsys):
    installed()
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "foveate-client 1.2.3\n"


def test_ctrl_c_leaves_no_traceback(installed, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    installed(classify=interrupted)
    assert cli.main(["classify"]) == 130
    assert capsys.readouterr().err == "foveate: interrupted\n"


def test_what_the_system_refuses_is_told_in_a_line(installed, capsys):
    def refused(arguments):
        Path(arguments[0]).write_text("x", encoding="utf-8")

    installed(export=refused)
    assert cli.main(["export", "/nowhere/at/all"]) == 1
    told = "foveate export: No such file or directory: /nowhere/at/all\n"
    assert capsys.readouterr().err == told


def test_the_program_stands_a_reader_that_leaves():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "foveate_client", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")
