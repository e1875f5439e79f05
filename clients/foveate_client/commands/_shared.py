"""Shared by the subcommands: opening a client, and reporting failures."""

import argparse
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from foveate_client._client import Client
from foveate_client._connection import ConnectionOptions, Credentials
from foveate_client._exceptions import CallError, FoveateError
from foveate_client._models import Model
from foveate_client._options import TrustRequest
from foveate_client._repository import RepositoryClient
from foveate_client.commands._options import (
    TOKEN_VARIABLE,
    SecurityOptions,
    SourceOptions,
    TrustOptions,
)

UNBROKEN = 1000
"""The width of a table that is written to a pipe, so that no line is wrapped."""


@contextmanager
def open_client(options: SourceOptions) -> Iterator[Client]:
    """Yield the client of the chosen source. Raises FoveateError."""
    with client_maker(options)() as client:
        try:
            yield client
        except KeyboardInterrupt:
            # An interrupt may leave gRPC's state of a call incomplete. Its thread then fails
            # when the channel closes, and would print a traceback.
            threading.excepthook = lambda _: None
            raise


def client_maker(options: SourceOptions) -> Callable[[], Client]:
    """Return a function that makes a client of the chosen source, also in another process.

    Raises FoveateError, and so does that function.
    """
    if options.repository is not None:
        return partial(_open, options.repository, options.timeout, options.require_signature)
    if options.address is None:
        raise FoveateError("neither --address nor --repository is given")
    with connection_errors():
        connection = connection_options(options)
    return partial(_connect, options.address, options.timeout, connection)


def _open(repository: str, timeout: float, keys: Path | None) -> Client:
    with connection_errors():
        return Client.local(repository, timeout=timeout, require_signature=keys)


def _connect(address: str, timeout: float, connection: ConnectionOptions) -> Client:
    with connection_errors():
        return Client(address, timeout=timeout, **connection)


def open_repository_client(address: str, options: SourceOptions) -> RepositoryClient:
    """Return a client that changes the models of a server. Raises FoveateError."""
    with connection_errors():
        return RepositoryClient(address, timeout=options.timeout, **connection_options(options))


@contextmanager
def connection_errors() -> Iterator[None]:
    """Raise the errors of files and flags of a connection as FoveateError."""
    try:
        yield
    except OSError as error:
        raise FoveateError(f"cannot read {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise FoveateError(str(error)) from error


def connection_options(options: SecurityOptions) -> ConnectionOptions:
    """Return the options of the connection that the flags set.

    Raises OSError where the token's file cannot be read, and ValueError where
    the flags contradict each other.
    """
    token: str | None = os.environ.get(TOKEN_VARIABLE) or None
    if options.token_file is not None:
        token = options.token_file.read_text(encoding="utf-8").strip()
    tls = options.tls or options.ca is not None or options.cert is not None
    if not tls and token is None and options.key is None and not options.server_name:
        return {}
    return {
        "credentials": Credentials(
            ca=options.ca,
            cert=options.cert,
            key=options.key,
            server_name=options.server_name,
            token=token,
            tls=tls,
        )
    }


def require_coverage(parser: argparse.ArgumentParser, options: TrustOptions) -> None:
    """Exit for wrong usage where --coverage is not between 0 and 1."""
    if options.coverage is not None and not 0 < options.coverage < 1:
        parser.error(f"--coverage {options.coverage:g} is not above 0 and below 1")


def trust_request(options: TrustOptions) -> TrustRequest | None:
    """Return the request for trust that the options make; None where they make none."""
    if not options.trust and options.coverage is None:
        return None
    return TrustRequest(coverage=options.coverage, set_method=options.set_method)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder to write into; at the end, remove the folders made that are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for path in missing:
                path.rmdir()


def describe(error: FoveateError) -> str:
    """Return the message of `error` for people, with the fields at fault."""
    lines = [str(error)]
    if isinstance(error, CallError):
        lines += [
            f"{violation.field}: {violation.description}"
            for violation in error.field_violations
            if violation.description not in lines[0]
        ]
        if error.retry_delay is not None:
            lines.append(f"try again in {error.retry_delay.total_seconds():g} s")
    return "; ".join(lines)


def without_maps(model: Model) -> str | None:
    """Return sentences on why a model has no maps and what to do; None where it has some."""
    if model.cam_methods:
        return None
    note = model.assumptions.get("cams", "")
    why = note.partition(": ")[2] or "its export does not say why"
    return (
        f"{model.name} has no class activation maps: {why}. The classes come without them. "
        "For maps, take --cam-method occlusion, export the model again (of a PyTorch network, "
        "--cam-layer names another layer), or choose another model: foveate models NAME shows "
        "its methods"
    )


def complain(parser: argparse.ArgumentParser, message: str) -> None:
    """Print a message about a failure on stderr."""
    print(f"{parser.prog}: {message}", file=sys.stderr)
