"""How a server is reached: what the client trusts, who it is, and how often it tries."""

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
    """What is trusted, and what is shown, on a connection.

    The connection is encrypted by TLS, but for a token alone that is shown to a
    server on this machine, unless `tls` says which. `ca` holds the authorities that may
    have signed the server's certificate; without it, those that gRPC ships.
    `cert` and `key` are shown to a server that asks who is calling (mutual
    TLS). `server_name` is the name to look for in the server's certificate
    where it is not the host's.

    `token` is sent with every call as `authorization: Bearer ...`; it is a
    string, or a function that is asked for it before every call. It is in no
    repr. With `tls=False` the connection is in the clear, and a token is then
    refused to any server but one on this machine, unless `plaintext_token` is
    set. Raises ValueError where these contradict each other.
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
        """Raise ValueError where `target` is none, or the token would reach it in the clear."""
        _check_form(target)
        if self.token is None or self.encrypts(target):
            return
        if self.plaintext_token or is_on_this_machine(target):
            return
        raise ValueError(f"the token would travel to {target} in the clear; use TLS")


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often a call is tried where the server answers UNAVAILABLE, and with what pauses.

    `attempts` counts the first one, from 1 to 5. The pause before the second is
    about `initial_pause` seconds, and each further one `multiplier` times as
    long, up to `max_pause`; both are at least 0.01. Streams are not tried
    again. Raises ValueError where a number is out of range.
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
    """What a client takes by keyword about the connection to an address."""

    credentials: Credentials
    """What is trusted and shown; unset, the connection is in the clear and without a token."""
    retries: Retries
    """How often a call is tried; unset, four times."""
    compression: Compression
    """How requests are compressed, "gzip" or "deflate"; unset, not at all."""


class ClientOptions(ConnectionOptions, total=False):
    """What a client of pictures takes by keyword besides."""

    throttling: Throttling
    """How `classify` holds back from a server that is overloaded; unset, not at all."""


def _check_form(target: str) -> None:
    """Raise ValueError where a target is a URL or no address, and name the right form."""
    if target != target.strip() or not target:
        raise ValueError(f"the address is {target!r}; write HOST:PORT, without white space")
    if not target.startswith("unix") and any(int(x) > _LARGEST_PORT for x in _PORT.findall(target)):
        # gRPC would take what is left of the number in sixteen bits, another server's port.
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
    # What a header cannot hold would otherwise be told together with the token itself.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token must be printable ASCII without spaces, and not empty")
