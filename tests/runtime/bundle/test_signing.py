"""Signatures of bundles."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from foveate_runtime.bundle.bundle import Bundle, BundleError
from foveate_runtime.bundle.signing import KeyFileError, Keys, read_private_key, sign

from ...conftest import FOVEATE
from .test_bundle import change_manifest

Write = Callable[..., Path]


def public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def keys(key: Ed25519PrivateKey, tmp_path: Path) -> Keys:
    """Return two keys, of which the second signs."""
    path = tmp_path / "keys.pem"
    path.write_bytes(public_pem(Ed25519PrivateKey.generate()) + public_pem(key))
    return Keys.read(path)


def test_a_signed_bundle_opens(write_bundle: Write, key: Ed25519PrivateKey, keys: Keys) -> None:
    path = write_bundle()
    assert sign(path, key) == path / "manifest.sig"
    assert Bundle.open(path, keys.check).labels == ("red", "green", "blue")
    assert Bundle.open(path).labels == ("red", "green", "blue")


def test_a_bundle_without_a_signature_is_refused(write_bundle: Write, keys: Keys) -> None:
    with pytest.raises(BundleError, match=r"^manifest\.sig: the bundle is not signed$"):
        Bundle.open(write_bundle(), keys.check)


def test_a_manifest_that_was_changed_is_refused(
    write_bundle: Write, key: Ed25519PrivateKey, keys: Keys
) -> None:
    path = write_bundle()
    sign(path, key)
    change_manifest(path, lambda m: m.update(policy={}))
    with pytest.raises(BundleError, match=r"^manifest\.sig: not a signature of this manifest"):
        Bundle.open(path, keys.check)


def test_the_signature_of_another_key_or_version_is_refused(
    write_bundle: Write, key: Ed25519PrivateKey, keys: Keys
) -> None:
    first, second = write_bundle(version=1), write_bundle(version=2)
    sign(first, Ed25519PrivateKey.generate())
    with pytest.raises(BundleError, match=r"^manifest\.sig: not a signature of this manifest"):
        Bundle.open(first, keys.check)
    (second / "manifest.sig").write_bytes(sign(first, key).read_bytes())
    with pytest.raises(BundleError, match=r"^manifest\.sig: not a signature of this manifest"):
        Bundle.open(second, keys.check)


def test_a_file_that_was_changed_is_refused(
    write_bundle: Write, key: Ed25519PrivateKey, keys: Keys
) -> None:
    path = write_bundle()
    sign(path, key)
    (path / "labels.txt").write_text("red\ngreen\nBLUE\n", encoding="utf-8")
    with pytest.raises(BundleError, match=r"^labels\.txt: its SHA-256"):
        Bundle.open(path, keys.check)


def test_nothing_of_a_manifest_is_believed_before_its_signature(
    write_bundle: Write, keys: Keys
) -> None:
    path = write_bundle()
    (path / "manifest.json").write_text("no JSON", encoding="utf-8")
    with pytest.raises(BundleError, match=r"^manifest\.sig: "):
        Bundle.open(path, keys.check)


@pytest.mark.parametrize("content", [b"", b"x" * 63, b"x" * 65, b"x" * 64, None])
def test_what_is_no_signature_is_refused(
    write_bundle: Write, keys: Keys, content: bytes | None
) -> None:
    path = write_bundle()
    if content is None:
        os.mkfifo(path / "manifest.sig")
    else:
        (path / "manifest.sig").write_bytes(content)
    with pytest.raises(BundleError, match=r"^manifest\.sig: not a signature"):
        Bundle.open(path, keys.check)


def test_a_bundle_that_no_server_would_load_is_not_signed(
    write_bundle: Write, key: Ed25519PrivateKey
) -> None:
    path = write_bundle()
    (path / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"^model\.onnx: no such file"):
        sign(path, key)
    assert not (path / "manifest.sig").exists()


def test_keys_of_openssl_sign_by_the_command(write_bundle: Write, tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    made = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", private]
    subprocess.run(made, check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    path = write_bundle()
    done = subprocess.run(
        [FOVEATE, "sign", path, "--key", private], check=True, capture_output=True, text=True
    )
    assert done.stdout == f"{path / 'manifest.sig'}\n"
    assert Bundle.open(path, Keys.read(public).check)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("missing", "cannot be read"),
        ("text", "not a private key"),
        ("encrypted", "the key is encrypted"),
        ("ecdsa", "not of the kind Ed25519"),
        ("public", "not a private key"),
    ],
)
def test_a_bad_private_key_is_named(
    tmp_path: Path, key: Ed25519PrivateKey, name: str, line: str
) -> None:
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    curve = generate_private_key(SECP256R1())
    other = curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files = {"text": b"x", "encrypted": locked, "ecdsa": other, "public": public_pem(key)}
    path = tmp_path / "key.pem"
    if name in files:
        path.write_bytes(files[name])
    with pytest.raises(KeyFileError, match=rf"key\.pem: .*{line}"):
        read_private_key(path)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("missing", "cannot be read"),
        ("text", "no public key"),
        ("private", "no public key"),
        ("broken", "not a public key"),
        ("ecdsa", "not of the kind Ed25519"),
        ("large", "larger than"),
    ],
)
def test_a_bad_file_of_keys_is_named(
    tmp_path: Path, key: Ed25519PrivateKey, name: str, line: str
) -> None:
    curve = generate_private_key(SECP256R1()).public_key()
    files = {
        "text": b"x",
        "private": private_pem(key),
        "broken": b"-----BEGIN PUBLIC KEY-----\nxxxx\n-----END PUBLIC KEY-----\n",
        "ecdsa": curve.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "large": b"x" * (2 << 20),
    }
    path = tmp_path / "keys.pem"
    if name in files:
        path.write_bytes(files[name])
    with pytest.raises(KeyFileError, match=rf"keys\.pem: .*{line}"):
        Keys.read(path)
