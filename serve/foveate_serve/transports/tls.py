"""The files of TLS, which are read again when they change."""

import logging
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from foveate_serve.settings import Settings, SettingsError

logger = logging.getLogger(__name__)

# asyncio gives each connection a buffer of this size before its handshake: 256 KiB by itself.
SSLProtocol.max_size = 16 << 10

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """A server's certificate and its key, and the authorities that sign its clients' ones (PEM).

    Without `client_ca` a client needs no certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None

    def context(self, protocol: str = "h2") -> ssl.SSLContext:
        """Read the files, for a protocol of ALPN; raises SettingsError, which names the setting."""
        _require_readable("tls_certificate", self.certificate)
        _require_readable("tls_key", self.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([protocol])
        try:
            # Without a password for the key, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except ssl.SSLError as error:
            raise SettingsError(
                f"tls_certificate: {self.certificate}: it and tls_key are not a chain of "
                f"certificates (PEM) and its key: {error.reason}"
            ) from error
        if self.client_ca is not None:
            _require_readable("tls_client_ca", self.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise SettingsError(
                    f"tls_client_ca: {self.client_ca}: it holds no certificates (PEM): "
                    f"{error.reason}"
                ) from error
        return context

    def stamps(self) -> tuple[int, ...]:
        """Return what changes with the files; raises OSError."""
        files = (self.certificate, self.key, self.client_ca)
        # context() reports a file that is missing at the start.
        return tuple(
            file.stat().st_mtime_ns if file.exists() else 0 for file in files if file is not None
        )


class Renewed(Generic[T]):
    """The result of `read` from the files of TLS; it is called again once they have changed.

    The next client then gets the renewed certificate. Where the files cannot be read,
    the old value stays in use. Raises SettingsError where they cannot be read at the
    start.
    """

    def __init__(self, files: TlsFiles, read: Callable[[TlsFiles], T]) -> None:
        self._files = files
        self._read = read
        self._stamps = files.stamps()
        self.value = read(files)

    def renew(self) -> T | None:
        """Return the new value, which `value` is from now on; None where it is the old one."""
        try:
            if (stamps := self._files.stamps()) == self._stamps:
                return None
            # Unreadable files are read again after their next change, not for every client.
            self._stamps = stamps
            self.value = self._read(self._files)
        except (OSError, SettingsError):
            logger.exception("the certificate could not be read again; the old one stays in use")
            return None
        return self.value


def renewed_context(tls: TlsFiles, protocol: str) -> ssl.SSLContext:
    """Return a context that uses the current files for each client; raises SettingsError."""
    files = Renewed(tls, lambda files: files.context(protocol))

    def renew(
        connection: ssl.SSLSocket | ssl.SSLObject,
        name: str | None,  # noqa: ARG001 - the certificate is the same for all names
        context: ssl.SSLContext,  # noqa: ARG001
    ) -> None:
        files.renew()
        connection.context = files.value

    first = files.value
    # Called at each handshake, whether the client names a server or not.
    first.sni_callback = renew
    return first


def tls_files(settings: Settings) -> TlsFiles | None:
    """Return the files of the server's TLS, None where it is in the clear."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return TlsFiles(
        certificate=settings.tls_certificate,
        key=settings.tls_key,
        client_ca=settings.tls_client_ca,
    )


def _require_readable(setting: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise SettingsError(f"{setting}: {file}: {error.strerror}") from error
