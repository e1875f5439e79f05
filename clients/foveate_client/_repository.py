"""The client that changes which models a server serves."""

# ruff: noqa: PLC0415 - gRPC is imported by the first client that needs it

from collections.abc import Mapping
from typing import Any, Self, Unpack

from foveate.v1.model_pb2 import ModelSummary as ModelSummaryMessage
from foveate.v1.repository_service_pb2 import (
    LoadModelRequest,
    ReloadModelRequest,
    SetVersionLabelsRequest,
    UnloadModelRequest,
)
from foveate_client._connection import ConnectionOptions
from foveate_client._exceptions import client_errors
from foveate_client._fork import OfOneProcess
from foveate_client._models import ModelSummary

DEFAULT_TIMEOUT = 600.0
"""Seconds: a change may take as long as the load of a large model."""


class RepositoryClient:
    """Loads, unloads and labels models, on a server that allows it (--admin).

        with RepositoryClient("localhost:50051") as repository:
            repository.load("pets", "4")

    `address` is HOST:PORT or any other gRPC target, and `timeout` the deadline
    of every call in seconds; ConnectionOptions lists the other options of a
    connection. Every change returns the model after it, and raises CallError.
    The server completes a change after the caller's deadline as well. A call
    after a fork raises ForkedError. Raises ValueError where a token would be sent
    unencrypted to another machine, and OSError where a certificate's file cannot be read.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        from foveate_client._transports.repository import RepositoryTransport

        self._transport = OfOneProcess(RepositoryTransport(address, **connection))
        self._timeout = timeout

    def load(self, name: str, version: str = "") -> ModelSummary:
        """Load a version, by its number or label; where it is empty, the newest."""
        return self._change("LoadModel", LoadModelRequest(name=name, version=version))

    def reload(self, name: str, version: str = "") -> ModelSummary:
        """Reload a version; where it is empty, the one that serves by default."""
        return self._change("ReloadModel", ReloadModelRequest(name=name, version=version))

    def unload(self, name: str, version: str = "") -> ModelSummary:
        """Stop serving a version, or where it is empty all of them.

        A version that a label stands for is refused: FailedPreconditionError.
        """
        return self._change("UnloadModel", UnloadModelRequest(name=name, version=version))

    def set_labels(self, name: str, labels: Mapping[str, str]) -> ModelSummary:
        """Replace the labels of a model; `labels` maps each to a version."""
        request = SetVersionLabelsRequest(name=name, version_labels=dict(labels))
        return self._change("SetVersionLabels", request)

    def close(self) -> None:
        """Close the connection. After a fork, do nothing."""
        if self._transport.is_here:
            self._transport.here.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _change(self, method: str, request: Any) -> ModelSummary:
        with client_errors():
            message: ModelSummaryMessage = self._transport.here.change(
                method, request, self._timeout
            )
        return ModelSummary.from_message(message)
