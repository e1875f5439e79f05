"""TLS for the gRPC port, and the permission that each method needs."""

import logging
import ssl
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


def server_tls(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS of the gRPC port, or None where it is in the clear.

    The files are read again when they change, so that a renewed certificate is
    shown to the next client; files that cannot be read leave the old ones in
    use. Raises SettingsError where they cannot be read at the start.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return _CertificateFiles(
        settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    ).first


class _CertificateFiles:
    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._stamps = self._stamp()
        self.first = self._newest = self._read()
        # Called at each handshake, whether the client names a server or not.
        self.first.sni_callback = self._renew

    def _renew(
        self,
        connection: ssl.SSLSocket | ssl.SSLObject,
        name: str | None,  # noqa: ARG002 - the certificate is the same for all names
        context: ssl.SSLContext,  # noqa: ARG002
    ) -> None:
        """Give a connection the files as they are now."""
        try:
            if (stamps := self._stamp()) != self._stamps:
                # Files that cannot be read are read again when they change, not for every client.
                self._stamps = stamps
                self._newest = self._read()
        except (OSError, SettingsError):
            logger.exception("the certificate could not be read again; the old one stays in use")
        connection.context = self._newest

    def _read(self) -> ssl.SSLContext:
        """Read the files; raises SettingsError."""
        _require_readable("tls_certificate", self._certificate)
        _require_readable("tls_key", self._key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        try:
            # Without a password for the key, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except ssl.SSLError as error:
            raise SettingsError(
                f"tls_certificate: {self._certificate}: it and tls_key are not a chain of "
                f"certificates (PEM) and its key: {error.reason}"
            ) from error
        if self._client_ca is not None:
            _require_readable("tls_client_ca", self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self._client_ca)
            except ssl.SSLError as error:
                raise SettingsError(
                    f"tls_client_ca: {self._client_ca}: it holds no certificates (PEM): "
                    f"{error.reason}"
                ) from error
        return context

    def _stamp(self) -> tuple[int, ...]:
        files = (self._certificate, self._key, self._client_ca)
        # A file that is missing at the start is told of by _read().
        return tuple(
            file.stat().st_mtime_ns if file.exists() else 0 for file in files if file is not None
        )


def _require_readable(setting: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise SettingsError(f"{setting}: {file}: {error.strerror}") from error
