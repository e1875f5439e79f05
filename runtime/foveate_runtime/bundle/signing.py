"""Signatures of bundles: Ed25519 (RFC 8032) over the manifest.

The manifest holds the model's name, its version and the SHA-256 of every file, so that
its signature stands for all of the bundle. The signature is a file beside it,
`manifest.sig`, of 64 bytes.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)

from foveate_runtime.bundle.bundle import Bundle, BundleError
from foveate_runtime.bundle.manifest import SIGNATURE_BYTES, SIGNATURE_FILE

_PURPOSE = b"foveate.bundle.signature/1\0"
"""Signed before the manifest: a signature for another purpose does not count here."""

_MAX_KEY_BYTES = 1 << 20
_END = b"-----END PUBLIC KEY-----"


class KeyFileError(Exception):
    """A file of keys that cannot be used; the message names it."""


@dataclass(frozen=True)
class Keys:
    """The public keys of which one must have signed a bundle."""

    keys: tuple[Ed25519PublicKey, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a PEM file of one or more public keys; raises KeyFileError."""
        text = _read(path)
        parts = [part + _END for part in text.split(_END)[:-1]]
        if not parts:
            raise KeyFileError(f"{path}: it holds no public key (PEM)")
        keys = []
        for part in parts:
            try:
                key = load_pem_public_key(part)
            except ValueError as error:
                raise KeyFileError(f"{path}: not a public key (PEM)") from error
            if not isinstance(key, Ed25519PublicKey):
                raise KeyFileError(f"{path}: a public key is not of the kind Ed25519")
            keys.append(key)
        return cls(tuple(keys))

    def check(self, root: Path, manifest: bytes) -> None:
        """Check the signature of the manifest in the folder `root`.

        Raises BundleError where there is none, or where it is of none of the keys.
        """
        signature = _read_signature(root)
        for key in self.keys:
            try:
                key.verify(signature, _PURPOSE + manifest)
            except InvalidSignature:
                continue
            return
        raise BundleError(f"{SIGNATURE_FILE}: not a signature of this manifest by a required key")


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key (PEM, PKCS 8, not encrypted); raises KeyFileError."""
    try:
        key = load_pem_private_key(_read(path), password=None)
    except TypeError as error:
        raise KeyFileError(f"{path}: the key is encrypted; decrypt it first") from error
    except ValueError as error:
        raise KeyFileError(f"{path}: not a private key (PEM)") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: the key is not of the kind Ed25519")
    return key


def sign(path: Path, key: Ed25519PrivateKey) -> Path:
    """Sign the bundle in the folder `path`; return the signature's file.

    A signature that is there is replaced. Raises BundleError where the bundle is not one
    that a server would load, and OSError.
    """
    checked: list[bytes] = []
    bundle = Bundle.open(path, lambda _, manifest: checked.append(manifest))
    target = bundle.path / SIGNATURE_FILE
    part = bundle.path / f".{SIGNATURE_FILE}.part"
    try:
        part.write_bytes(key.sign(_PURPOSE + checked[0]))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _read_signature(root: Path) -> bytes:
    try:
        # Opening a pipe would otherwise wait for a writer.
        descriptor = os.open(root / SIGNATURE_FILE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            plain = stat.S_ISREG(os.fstat(descriptor).st_mode)
            signature = file.read(SIGNATURE_BYTES + 1) if plain else b""
    except FileNotFoundError as error:
        raise BundleError(f"{SIGNATURE_FILE}: the bundle is not signed") from error
    except OSError as error:
        raise BundleError(f"{SIGNATURE_FILE}: cannot be read ({error.strerror})") from error
    if len(signature) != SIGNATURE_BYTES:
        raise BundleError(f"{SIGNATURE_FILE}: not a signature of {SIGNATURE_BYTES} bytes")
    return signature


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read ({error.strerror})") from error
    if len(text) > _MAX_KEY_BYTES:
        raise KeyFileError(f"{path}: larger than {_MAX_KEY_BYTES} bytes")
    return text
