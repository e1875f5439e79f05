"""`foveate pull`: bundles from elsewhere, into a repository's folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.folder import NoModelError
from foveate_runtime.bundle.publishing import put_in_place, staging, taken
from foveate_runtime.console import DONE, answer, positive, transfer
from foveate_runtime.options import argument, option, parse
from foveate_runtime.remote.fetching import Fetched, Remote, bounded, fetch, read_manifest, remotes
from foveate_runtime.remote.location import Location
from foveate_runtime.remote.store import Progress, RemoteError, Store, open_store

PROG = "foveate pull"

DESCRIPTION = """\
Copies bundles out of a bucket, of the Hugging Face Hub or of an image into a repository's
folder, and prints their folders: of each model the newest version, unless --model and
--version say another. Every file is compared with the digest that the bundle's manifest
has of it, and a version appears when it is whole. What is there already stays."""
EPILOG = "example: foveate pull s3://bucket/models --repository models"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `foveate pull`."""

    url: str = argument(
        "s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH, file:///PATH, "
        "hf://OWNER/NAME or oci://HOST/NAME:TAG; credentials come from the environment",
        metavar="URL",
    )
    repository: Path = option("the folder of models", metavar="DIR")
    model: str | None = option("default: every model", metavar="NAME")
    version: int | None = option("default: the newest", type=positive, metavar="N")


def main(arguments: Sequence[str]) -> int:
    """Pull bundles and return the exit code."""
    options = parse(Options, arguments, prog=PROG, description=DESCRIPTION, epilog=EPILOG)
    return answer(lambda: _run(options), PROG, usage=(NoModelError,))


def _run(options: Options) -> int:
    location = Location.parse(options.url)
    with (
        TemporaryDirectory(prefix="foveate-") as scratch,
        transfer(Console(stderr=True)) as progress,
    ):
        store = open_store(location, Path(scratch))
        found = remotes(bounded(store.entries(), options.url))
        wanted = list(_wanted(store, found, options.model, options.version))
        if not wanted:
            what = options.model or "model"
            version = f", version {options.version}" if options.version else ""
            raise NoModelError(f"{location} holds no {what}{version}")
        paths = [
            _pull(store, remote, fetched, options.repository, progress)
            for remote, fetched in wanted
        ]
    for path in paths:
        print(path)
    return DONE


def _wanted(
    store: Store, found: Sequence[Remote], model: str | None, version: int | None
) -> Iterator[tuple[Remote, Fetched]]:
    """Yield the bundles to pull, with their manifests."""
    newest: dict[str, Remote] = {}
    for remote in found:
        if not remote.complete:
            continue
        # The name and version of a bundle at the root are in its manifest.
        fetched = read_manifest(store, remote) if remote.key is None else None
        name, number = fetched.key if fetched else remote.key or ("", 0)
        if model in (None, name) and version in (None, number):
            # They come in ascending order.
            newest[name] = remote
    for remote in newest.values():
        yield remote, read_manifest(store, remote)


def _pull(
    store: Store, remote: Remote, fetched: Fetched, repository: Path, progress: Progress
) -> Path:
    name, version = fetched.key
    target = repository / name / str(version)
    if target.exists():
        if Bundle.open(target).digest == fetched.digest:
            return target
        raise RemoteError(taken(repository, name, version))
    with staging(repository, name) as stage:
        fetch(store, remote, fetched, stage, progress)
        Bundle.open(stage)
        if not put_in_place(stage, target):
            raise RemoteError(taken(repository, name, version))
    return target
