"""`foveate web`: a page that shows what a server's classifiers see."""

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from foveate_client import Client, FoveateError
from foveate_client._exceptions import os_reason
from foveate_client.commands._numbers import seconds
from foveate_client.commands._options import SecurityOptions, option, parse, parser_of
from foveate_client.commands._shared import connection_options

_PROGRAM = "foveate web"
_FAILED = 1
_TIMEOUT = 10.0
_LISTEN = "127.0.0.1:7860"


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no HOST:PORT with a port from 0 to 65535, such as {_LISTEN}"
        )
    return host.strip("[]"), int(port)


@dataclass(frozen=True, kw_only=True)
class Options(SecurityOptions):
    """The options of `foveate web`; `listen` is a host and a port, `timeout` in seconds."""

    address: str = option("the server to ask", metavar="HOST:PORT")
    listen: tuple[str, int] = option(
        "where the page is; port 0 takes a free one. Who reaches it may ask the server "
        "(default: %(default)s)",
        metavar="HOST:PORT",
        type=_host_and_port,
        default=_LISTEN,
    )
    timeout: float = option(
        "the longest wait for an answer (default: %(default)g)",
        metavar="SECONDS",
        type=seconds,
        default=_TIMEOUT,
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = parser_of(
        Options,
        prog=_PROGRAM,
        description="Show what the classifiers of a server see in a picture, as a page. One line "
        "says where the page is.",
        epilog=f"example: {_PROGRAM} --address localhost:50051",
    )
    try:
        return _run(parse(parser, Options, arguments))
    except OSError as error:
        print(f"{_PROGRAM}: {os_reason(error)}", file=sys.stderr)
    except (FoveateError, ValueError) as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
    return _FAILED


def _run(options: Options) -> int:
    connection = connection_options(options)
    with _listen(*options.listen) as listening:
        # Before Gradio is imported, which reads it then.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from foveate_web.serving import serve  # noqa: PLC0415 - it takes seconds

        with Client(options.address, timeout=options.timeout, **connection) as client:
            serve(client, options.address, listening)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises FoveateError where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
        # asyncio leaves Nagle's algorithm on for sockets made so: each event took 40 ms more, and
        # Gradio's client loses an event that is sent while the end of a stream is on its way.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise FoveateError(f"--listen {host}:{port}: {error.strerror}") from error
    return listening
