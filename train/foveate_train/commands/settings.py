"""The settings of a training run as options of a command line."""

import argparse
import types
from collections.abc import Collection
from typing import Any, Literal, Union, get_args, get_origin

from foveate_train.settings import Settings, settings


def add_settings(
    parser: argparse.ArgumentParser, *, without: Collection[str], **defaults: object
) -> None:
    """Add an option for every setting but those of `without`; `read_settings` reads them.

    `defaults` take the place of the settings' own. The values stay text: their
    limits are the settings' to check.
    """
    group = parser.add_argument_group("settings of the training")
    for name, field in Settings.model_fields.items():
        if name in without:
            continue
        default = defaults.get(name, field.default)
        option = f"--{name.replace('_', '-')}"
        described = " ".join((field.description or "").split()).replace("%", "%%")
        said = "none" if default is None else default
        help_text = f"{described} Default: {said}"
        if field.annotation is bool:
            group.add_argument(
                option, action=argparse.BooleanOptionalAction, default=default, help=help_text
            )
        else:
            group.add_argument(
                option, default=default, metavar=_metavar(field.annotation), help=help_text
            )


def read_settings(options: argparse.Namespace) -> Settings:
    """Return the settings that the options say.

    Raises:
        SettingsError: a value is outside its limits.
    """
    return settings(
        **{name: value for name, value in vars(options).items() if name in Settings.model_fields}
    )


def _metavar(annotation: Any) -> str:
    """Name what an option takes: the choices, or a number."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if get_origin(annotation) in {Union, types.UnionType}:
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    return "N" if annotation is int else "X"
