"""Options of subcommands: frozen dataclasses whose fields describe the command line."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from foveate_client._client import DEFAULT_TIMEOUT
from foveate_client.commands._numbers import seconds

OptionsT = TypeVar("OptionsT")

TOKEN_VARIABLE = "FOVEATE_TOKEN"  # noqa: S105 - its name, not its value


@dataclass(frozen=True)
class OptionGroup:
    """Options that stand together in the help.

    Attributes:
        title: above them; "" where they stand among the others.
        description: below the title.
        exclusive: whether at most one of them may be given.
        required: whether one of them must be given.
    """

    title: str = ""
    description: str | None = None
    exclusive: bool = False
    required: bool = False

    def add_to(self, parser: argparse.ArgumentParser) -> argparse._ActionsContainer:
        """Add the group to a parser, and return what its options are added to."""
        place: argparse._ActionsContainer = parser
        if self.title:
            place = parser.add_argument_group(self.title, self.description)
        return (
            place.add_mutually_exclusive_group(required=self.required) if self.exclusive else place
        )


def option(text: str, *flags: str, group: OptionGroup | None = None, **more: Any) -> Any:
    """Return a field that is the option of its name.

    Args:
        text: the help.
        flags: the option's names, where they are not that of the field.
        group: the group that it belongs to.
        more: further arguments of `argparse.ArgumentParser.add_argument`. Some follow from
            the field's type: a bool takes no value, a tuple may be repeated, a Literal has
            its choices, and None may be missing.
    """
    return field(metadata={"flags": flags, "group": group, "more": {"help": text, **more}})


def argument(text: str, **more: Any) -> Any:
    """Return a field that is a positional argument; the arguments are those of `option`."""
    return field(metadata={"flags": None, "group": None, "more": {"help": text, **more}})


def parser_of(
    options: type[OptionsT],
    *,
    prog: str,
    description: str,
    epilog: str,
    optional: OptionGroup | None = None,
) -> argparse.ArgumentParser:
    """Return the parser of a dataclass whose fields are made by `option` and `argument`.

    Args:
        options: the dataclass.
        prog: the command, as typed.
        description: what it does, above the options in the help.
        epilog: an example, below them.
        optional: a group of which none has to be given here, though it says `required`.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    places: dict[OptionGroup | None, argparse._ActionsContainer] = {None: parser}
    if optional is not None:
        places[optional] = replace(optional, required=False).add_to(parser)
    hints = get_type_hints(options)
    found = fields(options)  # type: ignore[arg-type]  # a dataclass, by its contract
    # What stands below a title comes last, in the line of usage as well.
    for each in sorted(found, key=lambda each: bool(getattr(each.metadata["group"], "title", ""))):
        flags, group, more = (each.metadata[name] for name in ("flags", "group", "more"))
        if group not in places:
            places[group] = group.add_to(parser)
        taken = _settings(hints[each.name], more, positional=flags is None)
        if flags is None:
            places[group].add_argument(each.name, **taken)
        else:
            flags = flags or (f"--{each.name.replace('_', '-')}",)
            places[group].add_argument(*flags, dest=each.name, **taken)
    return parser


def _settings(hint: Any, more: Mapping[str, Any], *, positional: bool) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a field of this type, where `more` wins."""
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
    parser: argparse.ArgumentParser, options: type[OptionsT], arguments: Sequence[str]
) -> OptionsT:
    """Parse the arguments into `options`, whose parser `parser_of` made.

    A list of values becomes a tuple. A ValueError of the dataclass, for options that
    contradict each other, is wrong usage.
    """
    found = vars(parser.parse_args(arguments))
    try:
        return options(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in found.items()
            }
        )
    except ValueError as error:
        parser.error(str(error))


SECURITY = OptionGroup(
    "security",
    f"A token is read from --token-file or the variable {TOKEN_VARIABLE}, and sent over TLS, "
    "or in the clear to this machine alone.",
)
SOURCE = OptionGroup(exclusive=True, required=True)


@dataclass(frozen=True, kw_only=True)
class SecurityOptions:
    """The options of TLS and of the token."""

    tls: bool = option("encrypt the connection", group=SECURITY)
    ca: Path | None = option(
        "the authorities to trust, instead of the usual ones; implies --tls",
        group=SECURITY,
        metavar="PEM",
    )
    cert: Path | None = option(
        "the certificate to show; implies --tls", group=SECURITY, metavar="PEM"
    )
    key: Path | None = option("the key of --cert", group=SECURITY, metavar="PEM")
    token_file: Path | None = option(
        "the file that holds the token to send with every call", group=SECURITY, metavar="FILE"
    )
    server_name: str = option(
        "the name to look for in the server's certificate (default: the host's)",
        group=SECURITY,
        metavar="NAME",
        default="",
    )


@dataclass(frozen=True, kw_only=True)
class SourceOptions(SecurityOptions):
    """The server or the repository to use. `timeout` is in seconds."""

    address: str | None = option("the server to ask", group=SOURCE, metavar="HOST:PORT")
    repository: str | None = option(
        "the bundles to run in this process: a folder, or s3://, gs://, az://, hf://, oci:// "
        "or file://",
        group=SOURCE,
        metavar="DIR|URL",
    )
    require_signature: Path | None = option(
        "public keys (PEM, Ed25519), of which one must have signed what --repository holds",
        metavar="FILE",
    )
    timeout: float = option(
        "the longest wait for an answer (default: %(default)g)",
        metavar="SECONDS",
        type=seconds,
        default=DEFAULT_TIMEOUT,
    )

    def __post_init__(self) -> None:
        if self.require_signature is not None and self.repository is None:
            raise ValueError(
                "--require-signature needs --repository: a server checks its own bundles"
            )


@dataclass(frozen=True, kw_only=True)
class TrustOptions:
    """The options of the trust in an answer."""

    trust: bool = option("say how far the answer can be believed, of a model that was calibrated")
    coverage: float | None = option(
        "how often the prediction set is to hold the right class, such as 0.9; implies "
        "--trust; default: the lowest of the calibration",
        metavar="SHARE",
    )
    set_method: Literal["lac", "raps"] = option(
        "how the prediction set is chosen: lac, the smallest sets; raps, the best classes, "
        "and at least one; default: lac",
        default="lac",
    )
