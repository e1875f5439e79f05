"""`foveate sign`: vouch for a bundle, so that servers can refuse all others."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from foveate_runtime.bundle.bundle import BundleError

PROG = "foveate sign"

DESCRIPTION = """\
Checks a bundle and signs its manifest, which holds the digest of every file, with an
Ed25519 key. The signature is the file manifest.sig beside it. `foveate serve
--require-signature KEYS` loads no bundle without one. A key pair comes from
`openssl genpkey -algorithm ed25519 -out key.pem` and
`openssl pkey -in key.pem -pubout -out keys.pem`."""
EPILOG = "example: foveate sign models/resnet18/1 --key key.pem"

DONE, FAILED, WRONG_USAGE = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        # An extra: the server needs it only where signatures are required.
        from foveate_runtime.bundle import signing  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cryptography":
            raise
        line = 'it needs cryptography: pip install "foveate-runtime[signing]"'
        return _fail(line, FAILED)
    try:
        key = signing.read_private_key(options.key)
    except signing.KeyFileError as error:
        return _fail(f"--key {error}", WRONG_USAGE)
    try:
        print(signing.sign(options.bundle, key))
    except BundleError as error:
        return _fail(str(error), FAILED)
    except OSError as error:
        return _fail(f"the signature cannot be written: {error.strerror}", FAILED)
    return DONE


def _fail(message: str, code: int) -> int:
    print(f"{PROG}: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "bundle", type=Path, help="the bundle's folder, <repository>/<model>/<version>"
    )
    parser.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="the private key (PEM)"
    )
    return parser
