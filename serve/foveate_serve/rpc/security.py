"""TLS for the gRPC port, and the permission that each method needs."""

import logging
from collections.abc import Mapping
from pathlib import Path

import grpc

from foveate_serve.access import AccessControl, Permission
from foveate_serve.errors import ServeError
from foveate_serve.observe.logs import CALLER
from foveate_serve.rpc.calls import Handler, refusing
from foveate_serve.rpc.errors import to_status
from foveate_serve.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

OPEN = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ModelReady",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)
"""What everyone may call: probes carry no tokens."""

SERVICES: Mapping[str, Permission] = {
    "foveate.v1.ClassifierService": Permission.INFER,
    "inference.GRPCInferenceService": Permission.INFER,
    "grpc.reflection.v1alpha.ServerReflection": Permission.INFER,
}
"""What the methods of a service need; those of any other need ADMIN."""

METHODS: Mapping[str, Permission] = {
    "/inference.GRPCInferenceService/RepositoryModelLoad": Permission.ADMIN,
    "/inference.GRPCInferenceService/RepositoryModelUnload": Permission.ADMIN,
}
"""The methods that need something else than their service."""


def permission_of(method: str) -> Permission | None:
    """Return what a method such as "/package.Service/Method" needs, None where it is open."""
    if method in OPEN:
        return None
    service = method.strip("/").rpartition("/")[0]
    return METHODS.get(method) or SERVICES.get(service, Permission.ADMIN)


class AccessGate:
    """Refuses calls whose token is missing, unknown or without the permission."""

    def __init__(self, access: AccessControl) -> None:
        self._access = access

    def __call__(self, call: grpc.HandlerCallDetails) -> Handler:
        """Check a call."""
        permission = permission_of(call.method)
        if permission is not None:
            header = dict(call.invocation_metadata or ()).get("authorization")
            text = header.decode("latin-1") if isinstance(header, bytes) else header
            try:
                # Not reset: the call's task has a context of its own, and ends with it.
                CALLER.set(self._access.check(text, permission))
            except ServeError as error:
                return refusing(to_status(error))
        return None


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Return the TLS credentials of the gRPC port, or None where it is in the clear.

    The files are read again when they change, so that a renewed certificate is
    shown to the next client; files that cannot be read leave the old ones in
    use. Raises SettingsError where they cannot be read at the start.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    files = _CertificateFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    return grpc.dynamic_ssl_server_credentials(
        files.read(),
        files.changed,  # type: ignore[arg-type] # None means no change, which the stubs forget
        require_client_authentication=settings.tls_client_ca is not None,
    )


class _CertificateFiles:
    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._stamps: tuple[int, ...] = ()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Read the files; raises SettingsError."""
        self._stamps = self._stamp()
        return grpc.ssl_server_certificate_configuration(
            [(_read("tls_key", self._key), _read("tls_certificate", self._certificate))],
            None if self._client_ca is None else _read("tls_client_ca", self._client_ca),
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Read the files again where they have changed since; None where they have not."""
        try:
            return None if self._stamp() == self._stamps else self.read()
        except (OSError, SettingsError):
            logger.exception("the certificate could not be read again; the old one stays in use")
            return None

    def _stamp(self) -> tuple[int, ...]:
        files = (self._certificate, self._key, self._client_ca)
        # A file that is missing at the start is told of by read().
        return tuple(
            file.stat().st_mtime_ns if file.exists() else 0 for file in files if file is not None
        )


def _read(setting: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: {file}: {error.strerror}") from error
