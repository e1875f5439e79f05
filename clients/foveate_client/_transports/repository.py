"""The transport of a RepositoryClient over gRPC."""

from google.protobuf.message import Message

from foveate.v1.model_pb2 import ModelSummary
from foveate.v1.repository_service_pb2_grpc import RepositoryServiceStub
from foveate_client._connection import Compression, Credentials, Retries
from foveate_client._transports.channel import PLAINTEXT, Caller, open_channel
from foveate_client._transports.status import status_errors


class RepositoryTransport:
    """Carries the calls of a RepositoryClient; its arguments are GrpcTransport's."""

    def __init__(
        self,
        address: str,
        *,
        credentials: Credentials | None = None,
        retries: Retries | None = None,
        compression: Compression | None = None,
    ) -> None:
        self._caller = Caller(credentials or PLAINTEXT)
        self._channel = open_channel(self._caller, address, retries, compression)
        self._stub = RepositoryServiceStub(self._channel)

    def change(self, method: str, request: Message, timeout: float) -> ModelSummary:
        """Call one of the service's methods, and return the model of its answer."""
        with status_errors(timeout):
            response = getattr(self._stub, method)(
                request, timeout=timeout, metadata=self._caller.headers()
            )
        model: ModelSummary = response.model
        return model

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()
