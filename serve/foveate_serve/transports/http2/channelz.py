"""grpc.channelz.v1: the server and its connections, as they are (gRFC A14).

It has one server and no channels: calls that the process itself makes are not shown.
"""

import ipaddress
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_channelz.v1 import channelz_pb2 as pb
from grpc_channelz.v1.channelz_pb2_grpc import ChannelzServicer as ChannelzServicerBase

from foveate_serve.transports.http2.connection import Connection
from foveate_serve.transports.http2.context import peer_of
from foveate_serve.transports.http2.counts import Counts

if TYPE_CHECKING:
    from foveate_serve.transports.http2.server import Http2Transport

Context = grpc.aio.ServicerContext[Any, Any]

SERVER_ID = 1
MOST_RESULTS = 100


class ChannelzServicer(ChannelzServicerBase):
    """Channelz of a server; a connection's socket has the connection's number."""

    def __init__(self, server: "Http2Transport") -> None:
        self._server = server

    async def GetTopChannels(  # noqa: N802, D102
        self,
        request: pb.GetTopChannelsRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> pb.GetTopChannelsResponse:
        return pb.GetTopChannelsResponse(end=True)

    async def GetServers(  # noqa: N802, D102
        self,
        request: pb.GetServersRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.GetServersResponse:
        servers = [self._describe()] if request.start_server_id <= SERVER_ID else []
        return pb.GetServersResponse(server=servers, end=True)

    async def GetServer(  # noqa: N802, D102
        self, request: pb.GetServerRequest, context: Context
    ) -> pb.GetServerResponse:
        if request.server_id != SERVER_ID:
            await _not_found(context, "server")
        return pb.GetServerResponse(server=self._describe())

    async def GetServerSockets(  # noqa: N802, D102
        self, request: pb.GetServerSocketsRequest, context: Context
    ) -> pb.GetServerSocketsResponse:
        if request.server_id != SERVER_ID:
            await _not_found(context, "server")
        most = min(request.max_results or MOST_RESULTS, MOST_RESULTS)
        found = [
            connection
            for number, connection in self._server.connections.items()
            if number >= request.start_socket_id
        ]
        return pb.GetServerSocketsResponse(
            socket_ref=[_ref(connection) for connection in found[:most]],
            end=len(found) <= most,
        )

    async def GetChannel(  # noqa: N802, D102
        self,
        request: pb.GetChannelRequest,  # noqa: ARG002
        context: Context,
    ) -> pb.GetChannelResponse:
        await _not_found(context, "channel")

    async def GetSubchannel(  # noqa: N802, D102
        self,
        request: pb.GetSubchannelRequest,  # noqa: ARG002
        context: Context,
    ) -> pb.GetSubchannelResponse:
        await _not_found(context, "subchannel")

    async def GetSocket(  # noqa: N802, D102
        self, request: pb.GetSocketRequest, context: Context
    ) -> pb.GetSocketResponse:
        connection = self._server.connections.get(request.socket_id)
        if connection is None:
            await _not_found(context, "socket")
        return pb.GetSocketResponse(socket=_socket(connection))

    def _describe(self) -> pb.Server:
        counts = self._server.counts()
        return pb.Server(
            ref=pb.ServerRef(server_id=SERVER_ID),
            data=pb.ServerData(
                calls_started=counts.started,
                calls_succeeded=counts.succeeded,
                calls_failed=counts.failed,
                last_call_started_timestamp=_time(counts),
            ),
        )


async def _not_found(context: Context, kind: str) -> NoReturn:
    await context.abort(grpc.StatusCode.NOT_FOUND, f"no {kind} of this number")


def _ref(connection: Connection) -> pb.SocketRef:
    return pb.SocketRef(socket_id=connection.number, name=peer_of(connection))


def _socket(connection: Connection) -> pb.Socket:
    counts, transport = connection.counts, connection.transport
    described = pb.Socket(
        ref=_ref(connection),
        data=pb.SocketData(
            streams_started=counts.started,
            streams_succeeded=counts.succeeded,
            streams_failed=counts.failed,
            messages_sent=counts.messages_sent,
            messages_received=counts.messages_received,
            last_remote_stream_created_timestamp=_time(counts),
        ),
        local=_address(transport.get_extra_info("sockname")),
        remote=_address(transport.get_extra_info("peername")),
    )
    described.data.local_flow_control_window.value = connection.receive_window
    described.data.remote_flow_control_window.value = connection.sender.window
    cipher = transport.get_extra_info("cipher")
    if cipher is not None:
        described.security.tls.standard_name = cipher[0]
    return described


def _address(place: object) -> pb.Address:
    if not isinstance(place, tuple):
        return pb.Address(uds_address=pb.Address.UdsAddress(filename=str(place or "")))
    packed = ipaddress.ip_address(str(place[0]).partition("%")[0]).packed
    return pb.Address(tcpip_address=pb.Address.TcpIpAddress(ip_address=packed, port=place[1]))


def _time(counts: Counts) -> Timestamp | None:
    if not counts.last_started:
        return None
    moment = Timestamp()
    moment.FromNanoseconds(round(1e9 * counts.last_started))
    return moment
