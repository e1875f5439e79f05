"""`foveate push`: a bundle to where other machines find it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands.card import MissingError, hub_card
from foveate_runtime.console import DONE, UsageError, answer, transfer
from foveate_runtime.options import BundleOptions, argument, option, parse
from foveate_runtime.remote.location import HUB, REGISTRY, Location
from foveate_runtime.remote.store import open_store

PROG = "foveate push"

DESCRIPTION = """\
Copies a bundle to a bucket, to the Hugging Face Hub with its model card, or into an image
of a registry that KServe mounts, and prints the URL that it has there. The digest of every
file is checked first. A version of a bucket is never overwritten."""
EPILOG = "example: foveate push models/resnet18/1 s3://bucket/models"


@dataclass(frozen=True, kw_only=True)
class Options(BundleOptions):
    """The options of `foveate push`."""

    url: str = argument(
        "s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH, file:///PATH, "
        "hf://OWNER/NAME or oci://HOST/NAME:TAG; credentials come from the environment",
        metavar="URL",
    )
    base: str = option(
        "with oci://: the image to build on, HOST/NAME:TAG; KServe's modelcars need one with "
        "a shell, such as busybox",
        metavar="IMAGE",
        default="",
    )


def main(arguments: Sequence[str]) -> int:
    """Push a bundle and return the exit code."""
    options = parse(Options, arguments, prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    return answer(lambda: _run(options), PROG, failures=(MissingError,))


def _run(options: Options) -> int:
    location = Location.parse(options.url)
    if options.base and location.scheme != REGISTRY:
        raise UsageError("--base goes with oci://")
    bundle = Bundle.open(options.bundle)
    with (
        TemporaryDirectory(prefix="foveate-") as scratch,
        transfer(Console(stderr=True)) as progress,
    ):
        store = open_store(location, Path(scratch), base=options.base)
        card = hub_card(bundle) if location.scheme in {HUB, REGISTRY} else ""
        url = store.push(bundle, card, progress)
    print(url)
    return DONE
