"""`foveate health`: asks a server whether it serves (grpc.health.v1)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from foveate_client._connection import Retries
from foveate_client._exceptions import FoveateError
from foveate_client._transports.channel import NO_PROXY, PLAINTEXT, Caller
from foveate_client._transports.status import details_of
from foveate_client.commands._numbers import seconds
from foveate_client.commands._options import SecurityOptions, argument, option, parse, parser_of
from foveate_client.commands._shared import (
    complain,
    connection_errors,
    connection_options,
)

_TIMEOUT = 5.0
_SERVING = HealthCheckResponse.SERVING


@dataclass(frozen=True, kw_only=True)
class Options(SecurityOptions):
    """The options of `foveate health`; `wait` is in seconds."""

    service: str = argument(
        "foveate.v1.ClassifierService/MODEL asks for one model (default: the server)",
        default="",
        metavar="SERVICE",
    )
    address: str = option("the server to ask", metavar="HOST:PORT")
    wait: float | None = option("wait this long for it to serve", metavar="SECONDS", type=seconds)


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand and return its exit code."""
    parser = parser_of(
        Options,
        prog="foveate health",
        description="Ask a server whether it serves; the exit code is 0 if it does, else 1.",
        epilog="example: foveate health --address localhost:50051",
    )
    options = parse(parser, Options, arguments)
    try:
        with connection_errors():
            channel = _open(options)
    except FoveateError as error:
        complain(parser, str(error))
        return 1
    with channel:
        try:
            status = _ask(channel, options).status
        except grpc.RpcError as error:
            complain(parser, f"{error.code().name}: {details_of(error)}")
            return 1
    print(HealthCheckResponse.ServingStatus.Name(status))
    return 0 if status == _SERVING else 1


def _open(options: Options) -> grpc.Channel:
    """Return a channel to the server. Raises OSError and ValueError as a Client does."""
    # The health service needs no token, so none is sent.
    credentials = replace(connection_options(options).get("credentials", PLAINTEXT), token=None)
    tls, channel_options = Caller(credentials).prepare(options.address, Retries(attempts=1))
    # The health is that of this server, and not of a proxy.
    channel_options.append(NO_PROXY)
    if tls is None:
        return grpc.insecure_channel(options.address, channel_options)
    return grpc.secure_channel(options.address, tls, channel_options)


def _ask(channel: grpc.Channel, options: Options) -> HealthCheckResponse:
    """Return the answer now, or with --wait the first that is SERVING. Raises RpcError."""
    stub: Any = HealthStub(channel)  # its annotations name no methods
    request = HealthCheckRequest(service=options.service)
    if options.wait is None:
        answer: HealthCheckResponse = stub.Check(request, timeout=_TIMEOUT)
        return answer
    watch = stub.Watch(request, timeout=options.wait, wait_for_ready=True)
    try:
        serving = (answer for answer in watch if answer.status == _SERVING)
        return next(serving, HealthCheckResponse())
    finally:
        watch.cancel()
