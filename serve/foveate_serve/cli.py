"""`foveate serve`: a repository of bundles over gRPC."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate_runtime.cores import count_cores
from foveate_runtime.remote.store import RemoteError
from foveate_serve.files import raise_open_files
from foveate_serve.heap import bound_heap
from foveate_serve.observe.logs import configure_logging
from foveate_serve.process import (
    HungError,
    KilledError,
    Process,
    StartError,
    exit_at_once,
    exit_soon,
    run_until_signals,
)
from foveate_serve.repository.remote import local_folder
from foveate_serve.rpc.server import AddressError
from foveate_serve.settings import (
    Settings,
    SettingsError,
    is_secret,
    load_settings,
    setting_names,
)
from foveate_serve.workers.supervisor import Supervisor

logger = logging.getLogger(__name__)

DONE, FAILED, WRONG_USAGE = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `foveate serve`; `settings` holds the text of those that are given."""

    config: Path | None = None
    profile: Path | None = None
    print_config: bool = False
    settings: Mapping[str, str | bool]


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    options = _parse(arguments)
    try:
        settings = load_settings(options.settings, options.config, options.profile)
    except SettingsError as error:
        return _fail(str(error), WRONG_USAGE)
    if options.print_config:
        print(settings.to_toml(), end="")
        return DONE
    configure_logging(settings)
    logger.info("thread counts follow %d of %d cores", count_cores(), os.cpu_count())
    raise_open_files()
    bound_heap()
    try:
        with local_folder(
            settings.repository,
            settings.version_labels,
            # Clients may ask for any version.
            every_version=settings.admin,
            interval=settings.poll_interval if settings.repository_mode == "poll" else None,
        ) as folder:
            code = _check(settings, folder)
            if code != DONE:
                return code
            return asyncio.run(serve(settings.model_copy(update={"repository": folder})))
    except RemoteError as error:
        return _fail(f"repository: {error}", FAILED)


def _check(settings: Settings, folder: Path) -> int:
    """Print what is wrong with the repository's folder, and return the exit code."""
    try:
        if not folder.is_dir():
            return _fail(f"repository: there is no folder {folder}", FAILED)
        for name in settings.models:
            if not (folder / name).is_dir():
                return _fail(f"models.{name}: the repository has no such model", WRONG_USAGE)
    except OSError as error:
        return _fail(f"repository: {error.strerror}: {error.filename}", FAILED)
    return DONE


async def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM, then drain; a second signal stops at once.

    Returns the exit code.
    """
    try:
        make = Process if settings.workers == 1 else Supervisor
        await run_until_signals(make(settings), _print_ready)
        exit_soon()
    except SettingsError as error:
        return _fail(str(error), WRONG_USAGE)
    except (HungError, KilledError) as error:
        exit_at_once(error)
    except (AddressError, StartError) as error:
        return _fail(str(error), FAILED)
    return DONE


def _print_ready(models: int, address: str) -> None:
    word = "model" if models == 1 else "models"
    print(f"foveate serving {models} {word} on {address}", flush=True)


def _fail(message: str, code: int) -> int:
    print(f"foveate serve: {message}", file=sys.stderr)
    return code


def _parse(arguments: Sequence[str]) -> Options:
    given = vars(_parser().parse_args(arguments))
    own = {name: given.pop(name) for name in ("config", "profile", "print_config") if name in given}
    return Options(settings=given, **own)


def _parser() -> argparse.ArgumentParser:
    """Return a parser with a flag for each setting; a flag that is not given sets nothing."""
    parser = argparse.ArgumentParser(
        prog="foveate serve",
        description="Serve the models of a repository over gRPC.",
        epilog="Every setting can also be in the file of --config, and in the environment "
        "as FOVEATE_SERVE_<NAME>. Flags win over the environment, which wins over the files. "
        "example: foveate serve --repository models --address 127.0.0.1:50051",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of settings")
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="each model's engine settings, as `foveate bench --objective` writes them; "
        "wins over the file of --config",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the settings as such a file, and exit"
    )
    for name in setting_names():
        if is_secret(name):  # other users of the machine can read the command line
            continue
        field = Settings.model_fields[name]
        kind: dict[str, Any] = (
            {"action": argparse.BooleanOptionalAction}
            if field.annotation is bool
            else {"metavar": name.rpartition("_")[2].upper()}
        )
        value = field.get_default(call_default_factory=True)
        default = "" if field.is_required() or value in (None, (), {}) else f" ({value})"
        help_text = f"{field.description}{default}".replace("%", "%%")
        parser.add_argument(f"--{name.replace('_', '-')}", help=help_text, **kind)
    return parser
