"""The transport that the settings name."""

# ruff: noqa: PLC0415 - a server imports the transport that it uses, and not the other

from collections.abc import Sequence

import grpc

from foveate_serve.settings import TransportSettings
from foveate_serve.transports.base import Transport


def make_transport(
    settings: TransportSettings, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
) -> Transport:
    """Return a transport; the first of `interceptors` is called first."""
    if settings.transport == "http2":
        from foveate_serve.transports.http2.server import Http2Transport

        return Http2Transport(settings, interceptors)
    from foveate_serve.transports.grpcio import GrpcioTransport

    return GrpcioTransport(settings, interceptors)
