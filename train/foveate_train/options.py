"""Commands and their options: frozen models whose fields are options and docstrings the help."""

import argparse
import inspect
import json
import sys
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import torch
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from foveate_train import distributed
from foveate_train.errors import SettingsError
from foveate_train.fit import Plan, Result, fit
from foveate_train.loop import default_device
from foveate_train.settings import Settings, checked


class As(NamedTuple):
    """How a field stands on the command line, where its name and type do not say it.

    Attributes:
        metavar: what its value is called in the help.
        names: of the option; a name without dashes is that of an argument by position.
        many: whether the option takes several values at once; else it is repeated.
    """

    metavar: str | None = None
    names: tuple[str, ...] = ()
    many: bool = False


class Options(BaseModel):
    """The options of a command."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


OptionsT = TypeVar("OptionsT", bound=Options)


class MachineOptions(Options):
    """The options of commands that compute."""

    device: str | None = None
    """cpu, cuda or cuda:N. Default: a GPU if there is one"""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of the processor. Default: torch's choice"""
    given: Annotated[dict[str, Any], Field(exclude=True)] = {}
    """The settings of the training that are given, as text by name"""

    def use_machine(self) -> torch.device:
        """Set the threads and return the device.

        Raises:
            SettingsError: there is no such device.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.device is None:
            return default_device()
        try:
            device = torch.device(self.device)
            torch.zeros(1, device=device)
        # Which it is depends on whether the name, the driver or the build is at fault.
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise SettingsError(f"--device {self.device}: cannot be used: {reason}") from error
        return device


class FitOptions(MachineOptions):
    """The options of commands that write a checkpoint, beside the training's settings."""

    model: str
    """The classifier, such as foveate:convnet4 or package:efficientnet_lite0"""
    argument: Annotated[tuple[str, ...], As("NAME=VALUE")] = ()
    """An argument of the classifier, such as pool=false; may be repeated"""
    weights: Annotated[str | None, As("FILE")] = None
    """What to start from, as a file, or random:SEED"""
    out: Path
    """The folder of the checkpoint"""
    resume: bool = False
    """Go on where DIR.run/state.pt stands"""
    tensorboard: bool = False
    """Write a TensorBoard log to DIR.run/tensorboard"""
    as_json: Annotated[bool, As(names=("--json",))] = False
    """Print the result as JSON"""

    def fit(self, plan: Plan, settings: Settings) -> int:
        """Train as planned and print the result; return the exit code, 1 if interrupted.

        Raises:
            TrainError: whatever stands in the way, as its subclass says.
        """
        return self.report(
            fit(
                plan,
                settings,
                self.out,
                resume=self.resume,
                tensorboard=self.tensorboard,
                device=self.use_machine(),
            )
        )

    def report(self, result: Result) -> int:
        """Print a result; return the exit code, 1 if interrupted."""
        if distributed.rank() == 0:
            if classes := result.by_class():
                print(f"right of each class: {classes}", file=sys.stderr)
            as_json = json.dumps({"checkpoint": str(self.out), **result.metrics})
            print(as_json if self.as_json else result)
        return int(result.interrupted)


@dataclass(frozen=True, kw_only=True)
class Command(Generic[OptionsT]):
    """A subcommand.

    Attributes:
        name: on the command line.
        options: what it takes. Its docstring is the help, from whose first indented
            line on an example stands below the options.
        run: does it, and returns the exit code.
        settings: the settings of the training that it offers, by name.
        defaults: what stands in the help in place of the settings' own defaults.
    """

    name: str
    options: type[OptionsT]
    run: Callable[[OptionsT], int]
    settings: Collection[str] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)

    def add_to(self, commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        """Add the parser of the options.

        The values stay text, and what is not given is absent: types, limits and
        defaults are the models' to know.
        """
        said, _, example = inspect.cleandoc(self.options.__doc__ or "").partition("\n\n    ")
        parser = commands.add_parser(
            self.name,
            help=f"{said[0].lower()}{said[1:]}".partition("\n")[0].rstrip("."),
            description=said,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, option in self.options.model_fields.items():
            if not option.exclude:
                _add_option(parser, name, option, option.default)
        group = parser.add_argument_group("settings of the training") if self.settings else parser
        for name in self.settings:
            setting = Settings.model_fields[name]
            _add_option(group, name, setting, self.defaults.get(name, setting.default))

    def answer(self, values: Mapping[str, object]) -> int:
        """Run it with what was parsed; return the exit code.

        Raises:
            TrainError: whatever stands in the way, as its subclass says.
        """
        given = {name: values[name] for name in self.settings if name in values}
        own = {name: value for name, value in values.items() if name not in given}
        return self.run(checked(self.options, own | ({"given": given} if self.settings else {})))


def _add_option(
    parser: argparse._ActionsContainer, name: str, option: FieldInfo, default: object
) -> None:
    told = next((each for each in option.metadata if isinstance(each, As)), As())
    names = told.names or (f"--{name.replace('_', '-')}",)
    said = " ".join((option.description or "").split()).replace("%", "%%")
    more: dict[str, Any] = {"default": argparse.SUPPRESS}
    if names[0].startswith("-"):
        more |= {"dest": name, "required": option.is_required()}
    if option.annotation is bool:
        more["action"] = argparse.BooleanOptionalAction if default else "store_true"
    else:
        more["metavar"] = told.metavar or _metavar(option.annotation)
    if get_origin(option.annotation) is tuple:
        optional = not (names[0].startswith("-") or option.is_required())
        more |= {"nargs": "*" if optional else "+"} if told.many else {"action": "append"}
    elif not (option.is_required() or default is None or default is False):
        said = f"{said.rstrip('.')}. Default: {default}"
    parser.add_argument(*names, help=said, **more)


def _metavar(annotation: Any) -> str:
    """Name what an option takes: the choices, a number, a folder or a name."""
    if get_origin(annotation) in {Union, types.UnionType}:
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return {int: "N", float: "X", Path: "DIR"}.get(annotation, "NAME")
