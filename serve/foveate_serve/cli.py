"""`foveate serve`: a repository of bundles over gRPC."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate_serve.access import make_access_control
from foveate_serve.assembly import make_engine
from foveate_serve.engine import Engine
from foveate_serve.observe.logs import configure_logging
from foveate_serve.observer import Changes, Observers
from foveate_serve.rpc.server import AddressError, Server
from foveate_serve.settings import Settings, SettingsError, is_secret, load_settings
from foveate_serve.statistics import Statistics

DONE, FAILED, WRONG_USAGE = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    flags = vars(_parser().parse_args(arguments))
    file, print_config = flags.pop("config", None), flags.pop("print_config", False)
    try:
        settings = load_settings(flags, file)
    except SettingsError as error:
        return _fail(str(error), WRONG_USAGE)
    if print_config:
        print(settings.to_toml(), end="")
        return DONE
    configure_logging(settings)
    return asyncio.run(serve(settings))


async def serve(settings: Settings) -> int:
    """Serve until SIGINT or SIGTERM, then drain; a second signal stops at once.

    Returns the exit code.
    """
    if not settings.repository.is_dir():
        return _fail(f"repository: there is no folder {settings.repository}", FAILED)
    stop, kill = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (kill if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    try:
        access = make_access_control(settings)
        changes, statistics = Changes(), Statistics()
        engine = make_engine(settings, Observers((statistics, changes)))
        server = Server(engine, settings, changes, statistics, access=access)
        address = await server.start()
    except SettingsError as error:
        return _fail(str(error), WRONG_USAGE)
    except AddressError as error:
        return _fail(str(error), FAILED)

    serving = asyncio.create_task(_serve(engine, server, address, settings, stop))
    killed = asyncio.create_task(kill.wait())
    await asyncio.wait((serving, killed), return_when=asyncio.FIRST_COMPLETED)
    killed.cancel()
    if serving.done():
        return await serving
    await server.abort()
    serving.cancel()
    return _fail("stopped before the requests in flight were answered", FAILED)


async def _serve(
    engine: Engine, server: Server, address: str, settings: Settings, stop: asyncio.Event
) -> int:
    stopped = asyncio.create_task(stop.wait())
    opening = asyncio.create_task(engine.repository.open())
    await asyncio.wait((opening, stopped), return_when=asyncio.FIRST_COMPLETED)
    code = DONE
    if opening.done():
        await opening
        models = sum(model.default_version is not None for model in engine.repository.models())
        if models or settings.admin:
            server.ready()
            word = "model" if models == 1 else "models"
            print(f"foveate serving {models} {word} on {address}", flush=True)
            await stopped
        else:
            code = _fail("repository: it holds no model that can be loaded", FAILED)
    stopped.cancel()
    opening.cancel()
    await server.drain()
    await engine.close()
    return code


def _fail(message: str, code: int) -> int:
    print(f"foveate serve: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    """Return a parser with one flag for each setting; what is not given is left to the others."""
    parser = argparse.ArgumentParser(
        prog="foveate serve",
        description="Serve the models of a repository over gRPC.",
        epilog="Every setting can also stand in the file of --config, and in the environment "
        "as FOVEATE_SERVE_<NAME>. Flags win over the environment, which wins over the file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of settings")
    parser.add_argument(
        "--print-config", action="store_true", help="print the settings as such a file, and exit"
    )
    for name, field in Settings.model_fields.items():
        if is_secret(name):  # other users of the machine can read the command line
            continue
        kind: dict[str, Any] = (
            {"action": argparse.BooleanOptionalAction}
            if field.annotation is bool
            else {"metavar": name.rpartition("_")[2].upper()}
        )
        default = "" if field.is_required() or field.default is None else f" ({field.default})"
        help_text = f"{field.description}{default}".replace("%", "%%")
        parser.add_argument(f"--{name.replace('_', '-')}", help=help_text, **kind)
    return parser
