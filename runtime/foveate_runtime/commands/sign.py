"""`foveate sign`: sign a bundle, so that servers can refuse all others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate_runtime.bundle.bundle import BundleError
from foveate_runtime.console import DONE, FAILED, WRONG_USAGE, say
from foveate_runtime.options import BundleOptions, option, parse

PROG = "foveate sign"

DESCRIPTION = """\
Checks a bundle and signs its manifest, which holds the digest of every file, with an
Ed25519 key. The signature is the file manifest.sig beside it. `foveate serve
--require-signature KEYS` loads no bundle without one. A key pair comes from
`openssl genpkey -algorithm ed25519 -out key.pem` and
`openssl pkey -in key.pem -pubout -out keys.pem`."""
EPILOG = "example: foveate sign models/resnet18/1 --key key.pem"


@dataclass(frozen=True, kw_only=True)
class Options(BundleOptions):
    """The options of `foveate sign`."""

    key: Path = option("the private key (PEM)", metavar="FILE")


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    options = parse(Options, arguments, prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    try:
        # An extra: the server needs it only where signatures are required.
        from foveate_runtime.bundle import signing  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cryptography":
            raise
        line = 'it needs cryptography: pip install "foveate-runtime[signing]"'
        return say(PROG, line, FAILED)
    try:
        key = signing.read_private_key(options.key)
    except signing.KeyFileError as error:
        return say(PROG, f"--key {error}", WRONG_USAGE)
    try:
        print(signing.sign(options.bundle, key))
    except BundleError as error:
        return say(PROG, error, FAILED)
    except OSError as error:
        return say(PROG, f"the signature cannot be written: {error.strerror}", FAILED)
    return DONE
