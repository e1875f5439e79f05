"""Options of subcommands: frozen dataclasses whose fields describe the command line.

`foveate_client.commands._options` has the same for the client, as neither distribution
needs the other.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

OptionsT = TypeVar("OptionsT")


def option(text: str, *, group: str | None = None, **more: Any) -> Any:
    """Return a field that is the option of its name.

    Args:
        text: the help.
        group: the title above it in the help.
        more: further arguments of `argparse.ArgumentParser.add_argument`. Some follow from
            the field's type: a bool takes no value, a tuple may be repeated, a Literal has
            its choices, and None may be missing.
    """
    return field(metadata={"positional": False, "group": group, "more": {"help": text, **more}})


def argument(text: str, **more: Any) -> Any:
    """Return a field that is a positional argument; the arguments are those of `option`."""
    return field(metadata={"positional": True, "group": None, "more": {"help": text, **more}})


def parser_of(
    options: type[OptionsT], *, prog: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Return the parser of a dataclass whose fields are made by `option` and `argument`.

    Args:
        options: the dataclass.
        prog: the command, as typed.
        description: what it does, above the options in the help.
        epilog: an example, below them.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    places: dict[str | None, argparse._ActionsContainer] = {None: parser}
    hints = get_type_hints(options)
    for each in fields(options):  # type: ignore[arg-type]  # a dataclass, by its contract
        positional, group = each.metadata["positional"], each.metadata["group"]
        if group not in places:
            places[group] = parser.add_argument_group(group)
        flag = each.name if positional else f"--{each.name.replace('_', '-')}"
        found = _settings(hints[each.name], each.metadata["more"], positional=positional)
        places[group].add_argument(flag, **found)
    return parser


def _settings(hint: Any, more: Mapping[str, Any], *, positional: bool) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a field of this type; `more` takes precedence."""
    kinds = get_args(hint)
    optional = NoneType in kinds
    kind = next(each for each in kinds if each is not NoneType) if optional else hint
    if kind is bool:
        return {"action": "store_true", **more}
    found: dict[str, Any] = {}
    several = get_origin(kind) is tuple
    if get_origin(kind) is Literal:
        found["choices"] = get_args(kind)
    elif not several and kind is not str:
        found["type"] = kind
    if several and "type" not in more:
        found["type"] = get_args(kind)[0]
        found.update({"nargs": "+"} if positional else {"action": "append", "default": []})
    elif several and not optional:
        found["default"] = ()
    elif positional and (optional or "default" in more):
        found["nargs"] = "?"
    elif not (positional or optional or "default" in more):
        found["required"] = True
    return {**found, **more}


def parse(
    options: type[OptionsT],
    arguments: Sequence[str],
    *,
    prog: str,
    description: str,
    epilog: str,
    defaults: Mapping[str, object] = {},
) -> OptionsT:
    """Parse the arguments of a command into `options`; a list of values becomes a tuple.

    `defaults` take the place of those of the fields; the rest is as in `parser_of`.
    """
    parser = parser_of(options, prog=prog, description=description, epilog=epilog)
    parser.set_defaults(**defaults)
    return options(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in vars(parser.parse_args(arguments)).items()
        }
    )


@dataclass(frozen=True, kw_only=True)
class BundleOptions:
    """The bundle that a command takes."""

    bundle: Path = argument("its folder, <repository>/<model>/<version>", metavar="BUNDLE")
