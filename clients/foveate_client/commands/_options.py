"""The options of subcommands: what their parsers read, as frozen dataclasses."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True, kw_only=True)
class SecurityOptions:
    """What `add_security_arguments` adds: how the connection is secured."""

    tls: bool
    ca: Path | None
    cert: Path | None
    key: Path | None
    token_file: Path | None
    server_name: str


@dataclass(frozen=True, kw_only=True)
class SourceOptions(SecurityOptions):
    """What `add_source_arguments` adds: where the models are. `timeout` is in seconds."""

    address: str | None
    repository: str | None
    require_signature: Path | None
    timeout: float


@dataclass(frozen=True, kw_only=True)
class TrustOptions:
    """What `add_trust_arguments` adds: whether an answer says how far it can be believed."""

    trust: bool
    coverage: float | None
    set_method: Literal["lac", "raps"]


def parse(
    parser: argparse.ArgumentParser, options: type[OptionsT], arguments: Sequence[str]
) -> OptionsT:
    """Parse the arguments into `options`, a dataclass with a field for each of the parser's.

    What an argument collects in a list becomes a tuple.
    """
    found = vars(parser.parse_args(arguments))
    if found.get("require_signature") and not found["repository"]:
        parser.error("--require-signature needs --repository: a server checks its own bundles")
    return options(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in found.items()
        }
    )
