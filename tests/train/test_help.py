"""What `foveate train ... --help` says."""

import shlex
from dataclasses import replace

import pytest
from pydantic import ValidationError

from foveate_train.commands.train import COMMANDS, main
from foveate_train.settings import Settings


def _help(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--help"])
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_every_command_is_listed(capsys):
    said = _help(capsys)
    assert all(name in said for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_in_an_example_that_it_takes(name, capsys, monkeypatch):
    said = _help(capsys, name)
    example = shlex.split(said.rpartition("example:\n  ")[2])
    assert example[:3] == ["foveate", "train", name]
    taken = []
    command = replace(COMMANDS[name], run=lambda options: taken.append(options) or 0)
    monkeypatch.setitem(COMMANDS, name, command)
    assert main(example[2:]) == 0
    assert isinstance(taken[0], command.options)
    with pytest.raises(ValidationError, match="frozen"):
        taken[0].out = None


@pytest.mark.parametrize("name", ["mnist", "finetune"])
def test_every_setting_is_described(name, capsys):
    said = " ".join(_help(capsys, name).split())
    for setting in COMMANDS[name].settings:
        described = Settings.model_fields[setting].description
        assert " ".join(described.split()).rstrip(".") in said
