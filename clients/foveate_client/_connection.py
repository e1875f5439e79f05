"""The options of a connection: TLS, tokens, retries and compression."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

from foveate_client._throttle import Throttling

Pem: TypeAlias = "str | os.PathLike[str] | bytes"
"""PEM text, as bytes or as the path of a file."""

Compression: TypeAlias = Literal["deflate", "gzip"]

# gRPC itself tries no more often.
_HIGHEST_ATTEMPTS = 5
# A pause that gRPC rounds down to no millisecond at all is one that never ends.
_SHORTEST_PAUSE = 0.01
_LARGEST_PORT = 65535
_PORT = re.compile(r":([0-9]+)(?=,|$)")
_URL = re.compile(r"(?P<scheme>https?|grpcs?)://(?P<rest>[^/]*)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The TLS certificates and the token of a connection.

    `tls` is whether the connection uses TLS; None means that it does, unless only a token
    is given and the server is on this machine. `ca` holds the authorities that may have
    signed the server's certificate; without it, those that gRPC ships. `cert` and `key`
    are the client's own, for a server that requires one (mutual TLS). `server_name` is
    the name in the server's certificate, where it is not the host's.

    `token` is sent with every call as `authorization: Bearer ...`. It is a string, or a
    function that is called before every call. No repr shows it. With `tls=False` the
    connection is unencrypted, and a token may then be sent to this machine alone, unless
    `plaintext_token` is set. Raises ValueError where these contradict each other.
    """

    ca: Pem | None = None
    cert: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    server_name: str = ""
    token: str | Callable[[], str] | None = field(default=None, repr=False)
    tls: bool | None = None
    plaintext_token: bool = False

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together: one is given without the other")
        if self.tls is False and (self.ca is not None or self.cert is not None or self.server_name):
            raise ValueError("ca, cert, key and server_name are of no use with tls=False")
        if isinstance(self.token, str):
            _check_token(self.token)

    def authorization(self) -> str | None:
        """Return the value of the header, or None where there is no token."""
        if self.token is None:
            return None
        token = self.token if isinstance(self.token, str) else self.token()
        _check_token(token)
        return f"Bearer {token}"

    def encrypts(self, target: str) -> bool:
        """Return whether the connection to `target` is encrypted."""
        if self.tls is not None:
            return self.tls
        shown = (self.ca, self.cert, self.server_name or None)
        alone = self.token is not None and not any(x is not None for x in shown)
        return not (alone and is_on_this_machine(target))

    def check(self, target: str) -> None:
        """Raise ValueError for a bad address, or where the token would be sent unencrypted."""
        _check_form(target)
        if self.token is None or self.encrypts(target):
            return
        if self.plaintext_token or is_on_this_machine(target):
            return
        raise ValueError(f"the token would travel to {target} in the clear; use TLS")


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often a call that fails with UNAVAILABLE is tried, and the pauses between.

    `attempts` counts the first one, from 1 to 5. The pause before the second is
    about `initial_pause` seconds, and each further one `multiplier` times as
    long, up to `max_pause`; both are at least 0.01. Streams are not retried.
    Raises ValueError where a number is out of range.
    """

    attempts: int = 4
    initial_pause: float = 0.1
    max_pause: float = 2.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= _HIGHEST_ATTEMPTS:
            raise ValueError(f"attempts must be from 1 to {_HIGHEST_ATTEMPTS}, not {self.attempts}")
        for name, least in {
            "initial_pause": _SHORTEST_PAUSE,
            "max_pause": _SHORTEST_PAUSE,
            "multiplier": 1,
        }.items():
            if not least <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")


class ConnectionOptions(TypedDict, total=False):
    """The keyword arguments of a client about its connection to an address."""

    credentials: Credentials
    """TLS and the token; unset, the connection is unencrypted and has no token."""
    retries: Retries
    """How often a call is tried; unset, four times."""
    compression: Compression
    """How requests are compressed, "gzip" or "deflate"; unset, not at all."""


class ClientOptions(ConnectionOptions, total=False):
    """Those of a client that classifies pictures."""

    throttling: Throttling
    """Whether `classify` sends fewer calls to an overloaded server, and how; unset, it does not."""


def _check_form(target: str) -> None:
    """Raise ValueError where a target is a URL or no address, and name the right form."""
    if target != target.strip() or not target:
        raise ValueError(f"the address is {target!r}; write HOST:PORT, without white space")
    if not target.startswith("unix") and any(int(x) > _LARGEST_PORT for x in _PORT.findall(target)):
        # gRPC would use the number modulo 65,536: another server's port.
        raise ValueError(f"the address is {target}; the limit of a port is {_LARGEST_PORT}")
    found = _URL.match(target)
    if found is not None:
        tls = " with TLS (--tls, Credentials())" if found["scheme"].lower()[-1] == "s" else ""
        raise ValueError(f"the address {target} is a URL; write {found['rest']}{tls}")


def pem(source: Pem | None) -> bytes | None:
    """Return the text of `source`. Raises OSError where its file cannot be read."""
    return source if source is None or isinstance(source, bytes) else Path(source).read_bytes()


def is_on_this_machine(target: str) -> bool:
    """Return whether a gRPC target is a socket or a loopback address of this machine.

    A host's name other than localhost is not looked up, and is not.
    """
    scheme, _, rest = target.partition(":")
    if scheme in {"unix", "unix-abstract"}:
        return True
    if scheme in {"ipv4", "ipv6"}:
        return all(_is_loopback(address) for address in rest.lstrip("/").split(","))
    if scheme == "dns":
        return _is_loopback(rest.rpartition("/")[2])
    return _is_loopback(target)


def _is_loopback(address: str) -> bool:
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    else:
        host = address
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_token(token: str) -> None:
    # gRPC's own message about a bad header contains the token.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token must be printable ASCII without spaces, and not empty")
