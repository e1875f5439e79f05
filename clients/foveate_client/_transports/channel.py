"""A gRPC channel: its options, its credentials, and the headers of a call."""

import json
from importlib.metadata import version
from typing import Any

import grpc

from foveate_client._connection import (
    Compression,
    Credentials,
    Retries,
    is_on_this_machine,
    pem,
)
from foveate_client._images import MAX_FILE_BYTES
from foveate_client._tracing import trace_headers

_SERVICE = "foveate.v1.ClassifierService"

# The feature map of one early layer can take tens of MB, far above gRPC's 4 MB.
MAX_MESSAGE_BYTES = MAX_FILE_BYTES

NO_PROXY = ("grpc.enable_http_proxy", 0)

PLAINTEXT = Credentials(tls=False)

COMPRESSION = {
    None: grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}


def model_headers(model: str) -> dict[str, str]:
    """Return the header by which an overloaded server refuses a call before its message is read."""
    # A name that a header cannot contain is not that of a model: the server's error says so.
    return {"x-model": model} if model and model.isascii() and model.isprintable() else {}


class Caller:
    """The credentials of a client, for its channels and for the headers of its calls."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def prepare(
        self, address: str, retries: Retries
    ) -> tuple[grpc.ChannelCredentials | None, list[tuple[str, Any]]]:
        """Return the credentials and options of a channel to `address`.

        Raises ValueError for a bad address, or where a token would be sent unencrypted.
        """
        self._credentials.check(address)
        options = _channel_options(retries)
        in_the_clear = not self._credentials.encrypts(address)
        if is_on_this_machine(address) or (in_the_clear and self._credentials.token is not None):
            # A proxy would connect to another machine of this address, and can read the token.
            options.append(NO_PROXY)
        if in_the_clear:
            return None, options
        if self._credentials.server_name:
            options.append(("grpc.ssl_target_name_override", self._credentials.server_name))
        tls = grpc.ssl_channel_credentials(
            root_certificates=pem(self._credentials.ca),
            private_key=pem(self._credentials.key),
            certificate_chain=pem(self._credentials.cert),
        )
        return tls, options

    def headers(self, model: str = "") -> tuple[tuple[str, str], ...]:
        """Return the headers of one call: its trace, its token and its model."""
        headers = {**trace_headers(), **model_headers(model)}
        authorization = self._credentials.authorization()
        if authorization is not None:
            headers["authorization"] = authorization
        return tuple(headers.items())


def _channel_options(retries: Retries) -> list[tuple[str, Any]]:
    return [
        ("grpc.service_config", json.dumps(_service_config(retries))),
        # The largest call that is retried. The default, 256 KiB, is smaller than most photographs.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # Detects, during a call, a connection that a router has dropped silently.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # The longest pause before the client reconnects; gRPC's default is two minutes.
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.primary_user_agent", f"foveate-client/{version('foveate-client')}"),
    ]


def _service_config(retries: Retries) -> dict[str, Any]:
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries.attempts > 1:
        # A retry is safe and likely to help after UNAVAILABLE alone. A stream is not retried,
        # because the answers before the failure would be repeated.
        config["methodConfig"] = [
            {
                "name": [
                    {"service": _SERVICE, "method": method}
                    for method in ("Classify", "GetModel", "ListModels")
                ],
                "retryPolicy": {
                    "maxAttempts": retries.attempts,
                    "initialBackoff": f"{retries.initial_pause:.9f}s",
                    "maxBackoff": f"{retries.max_pause:.9f}s",
                    "backoffMultiplier": retries.multiplier,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    return config


def open_channel(
    caller: Caller, address: str, retries: Retries | None, compression: Compression | None
) -> grpc.Channel:
    """Return a channel with these options; raises as `Caller.prepare` does."""
    tls, options = caller.prepare(address, retries or Retries())
    chosen = COMPRESSION[compression]
    if tls is None:
        return grpc.insecure_channel(address, options, chosen)
    return grpc.secure_channel(address, tls, options, chosen)
