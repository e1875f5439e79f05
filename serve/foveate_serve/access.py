"""Access control: bearer tokens and their permissions."""

import hmac
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from foveate_serve.errors import ForbiddenError, UnauthenticatedError
from foveate_serve.settings import Settings, SettingsError, first_error


class Permission(StrEnum):
    """A permission of a token. None includes another."""

    INFER = "infer"
    ADMIN = "admin"
    METRICS = "metrics"


class TokenEntry(BaseModel):
    """One `[[tokens]]` of the file: the secret itself, or its SHA-256 in hexadecimal."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(min_length=1)
    secret: SecretStr | None = Field(default=None, min_length=16)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    permissions: frozenset[Permission] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.secret is None) == (self.sha256 is None):
            raise ValueError("either secret or sha256 must be given")
        return self

    def digest(self) -> bytes:
        """Return the SHA-256 of the secret."""
        if self.secret is not None:
            return _digest(self.secret.get_secret_value())
        return bytes.fromhex(self.sha256 or "")


class TokenFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    tokens: list[TokenEntry] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token, of which only the digest is kept."""

    name: str
    digest: bytes
    permissions: frozenset[Permission]


class AccessControl:
    """Checks the `authorization` header of a call."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._tokens = tuple(tokens)

    def check(self, header: str | None, permission: Permission) -> str:
        """Return the name of the token in `header`.

        Raises UnauthenticatedError where there is none or it is unknown, and
        ForbiddenError where it does not have the permission.
        """
        scheme, _, secret = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise UnauthenticatedError(
                "TOKEN_MISSING", "the call needs the header 'authorization: Bearer <token>'"
            )
        digest, known = _digest(secret.strip()), None
        # All are compared, so that the time does not reveal which one matched.
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                known = token
        if known is None:
            raise UnauthenticatedError("TOKEN_INVALID", "the token is not known to this server")
        if permission not in known.permissions:
            raise ForbiddenError(
                "PERMISSION_MISSING",
                f"the token does not have the permission {permission.value!r}",
                metadata={"permission": permission.value},
            )
        return known.name


def make_access_control(settings: Settings) -> AccessControl | None:
    """Return the access control of the settings, or None where every call is allowed.

    Raises SettingsError where the file of tokens is bad; the message holds no secret.
    """
    tokens = [] if settings.tokens is None else read_tokens(settings.tokens)
    if settings.token is not None:
        digest = _digest(settings.token.get_secret_value())
        permissions = frozenset({Permission.INFER})
        tokens.append(Token(name="token", digest=digest, permissions=permissions))
    return AccessControl(tokens) if tokens else None


def read_tokens(file: Path) -> list[Token]:
    """Read a file of tokens; raises SettingsError, whose message holds no secret."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        entries = TokenFile(**content).tokens
    except OSError as error:
        raise SettingsError(f"tokens: {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise SettingsError(f"tokens: {file}: it is not a TOML file") from None
    except ValidationError as error:
        name, first = first_error(error)
        raise SettingsError(f"tokens: {file}: {name}: {first['msg']}") from None
    return [
        Token(name=entry.name, digest=entry.digest(), permissions=entry.permissions)
        for entry in entries
    ]


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
