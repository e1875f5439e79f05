"""The dataclass of a command's options says of each what its parser reads."""

import argparse
import pkgutil
from dataclasses import FrozenInstanceError
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

import foveate_bench.command
import foveate_client.commands
import foveate_export.commands
import foveate_runtime.commands
import foveate_runtime.options
import foveate_web.command
from foveate_client.commands import _options, health

PACKAGES = (foveate_client.commands, foveate_export.commands, foveate_runtime.commands)
MODULES = [
    module
    for package in PACKAGES
    for each in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    if {"Options", "main"} <= vars(module := import_module(each.name)).keys()
] + [foveate_bench.command, foveate_web.command]
LISTS = (argparse._AppendAction, argparse._ExtendAction)


def parser_of(module: ModuleType) -> argparse.ArgumentParser:
    """Return the parser of a command's options, by the client's module or the runtime's."""
    client = module.parse is _options.parse
    make = _options.parser_of if client else foveate_runtime.options.parser_of
    return make(module.Options, prog="command", description="", epilog="")


def value_type(action: argparse.Action) -> Any:
    """Return the type of what argparse leaves of an option."""
    if isinstance(action.const, bool) or isinstance(action, argparse.BooleanOptionalAction):
        return bool
    kind: Any = str if action.type is None else action.type
    if not isinstance(kind, type):
        kind = get_type_hints(kind)["return"]
    if isinstance(action, LISTS) or action.nargs in {"+", "*"}:
        return tuple[kind, ...]
    return kind if action.required or action.default is not None else kind | None


def with_choices(hint: Any, choices: Any) -> Any:
    """Return the hint with str in place of a Literal of the choices."""
    literals = [each for each in (hint, *get_args(hint)) if get_origin(each) is Literal]
    if not (literals and choices):
        return hint
    assert get_args(literals[0]) == tuple(choices)
    return str if literals[0] == hint else str | None


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_option_is_a_field_of_its_type(module: ModuleType) -> None:
    actions = {
        action.dest: action
        for action in parser_of(module)._actions
        if not isinstance(action, argparse._HelpAction)
    }
    hints = get_type_hints(module.Options)
    assert hints.keys() == actions.keys()
    found = {name: with_choices(hint, actions[name].choices) for name, hint in hints.items()}
    assert found == {name: value_type(action) for name, action in actions.items()}


def test_options_do_not_change() -> None:
    options = health.parse(parser_of(health), health.Options, ["--address", "localhost:1"])
    with pytest.raises(FrozenInstanceError):
        options.address = "localhost:2"
