"""Bundles in a bucket of S3, Google Cloud Storage or Azure, or in a folder, by obstore."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256

import obstore
from obstore import exceptions
from obstore.store import LocalStore, ObjectStore, from_url

from foveate_runtime.bundle.bundle import Bundle, read_manifest
from foveate_runtime.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
from foveate_runtime.remote.location import Location
from foveate_runtime.remote.store import (
    Entry,
    Progress,
    RemoteError,
    UnreachableError,
    names_of,
    reason,
)

_CHUNK = 8 << 20
_PART_SECONDS = timedelta(seconds=60)
"""The longest wait for a part of a file, or for a page of a listing."""
_CONNECT_SECONDS = timedelta(seconds=5)
_RETRY_SECONDS = timedelta(seconds=30)
_RETRIES = 3
_SINGLE_PUT = 64 << 20
"""Files above this size are written in parts."""

_ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
"""The variables that allow an endpoint without TLS, such as one on this machine."""

_NO_CONNECTION = re.compile(
    r"error sending request|ConnectError|kind: (Connect|Timeout|Interrupted)"
)
_PREFIX = re.compile(r"^Generic \w+ error: (Error performing \w+ request: )?")


class BucketStore:
    """A bucket's folder with `<model>/<version>/` in it.

    Credentials and endpoints come from the environment, as the clouds' own tools
    read them: AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS,
    AZURE_STORAGE_ACCOUNT_NAME and so on, or from the machine's role.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._opened: ObjectStore | None = None

    def _store(self, *, make: bool = False) -> ObjectStore:
        if self._opened is None:
            if self._location.scheme != "file":
                self._opened = _open(self._location)
            elif not (make or self._location.folder.is_dir()):
                raise RemoteError(f"{self._location}: there is no such folder")
            else:
                self._opened = LocalStore(self._location.folder, mkdir=make)
        return self._opened

    def revision(self) -> str:
        """Return nothing: a bucket has no revision of all its files."""
        return ""

    def entries(self) -> Iterator[Entry]:
        """Yield every object."""
        with self._errors():
            for page in obstore.list(self._store()):
                for found in page:
                    # An object without a tag is identified by its time of change.
                    tag = found["e_tag"] or found["last_modified"].isoformat()
                    yield Entry(found["path"], found["size"], tag)

    def read(self, entry: Entry) -> Iterator[bytes]:
        """Yield an object part by part, so that each wait has a limit."""
        with self._errors():
            for start in range(0, entry.size, _CHUNK):
                length = min(_CHUNK, entry.size - start)
                yield bytes(
                    obstore.get_range(self._store(), entry.path, start=start, length=length)
                )

    def push(self, bundle: Bundle, card: str, progress: Progress) -> str:  # noqa: ARG002 - a bucket has no card
        """Write the files, and the manifest last, which is what makes a version."""
        manifest = bundle.manifest
        folder = f"{manifest.name}/{manifest.version}"
        url = f"{self._location}/{folder}"
        target = f"{folder}/{MANIFEST_FILE}"
        text = read_manifest(bundle.path)
        with self._errors():
            self._store(make=True)
            there = self._is_there(target, text, url)
            # A version may be signed after it was pushed.
            names = [n for n in names_of(bundle)[:-1] if not there or n == SIGNATURE_FILE]
            sizes = {name: (bundle.path / name).stat().st_size for name in names}
            done = 0
            for name, size in sizes.items():
                obstore.put(
                    self._store(),
                    f"{folder}/{name}",
                    bundle.path / name,
                    use_multipart=size > _SINGLE_PUT,
                )
                done += size
                progress(folder, done, sum(sizes.values()))
            if there:
                return url
            try:
                obstore.put(self._store(), target, text, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError:
                # Another push was faster.
                self._is_there(target, text, url)
        return url

    def _is_there(self, target: str, text: bytes, url: str) -> bool:
        """Return whether the version is there; raises RemoteError where it is another one."""
        try:
            found = bytes(obstore.get(self._store(), target).bytes())
        except (FileNotFoundError, exceptions.NotFoundError):
            return False
        if sha256(found).digest() == sha256(text).digest():
            return True
        raise RemoteError(f"{url}: there is another bundle; versions are never overwritten")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, exceptions.NotFoundError) as error:
            raise RemoteError(f"{self._location}: there is no such bucket or file") from error
        except exceptions.UnauthenticatedError as error:
            raise RemoteError(f"{self._location}: the credentials are refused") from error
        except exceptions.PermissionDeniedError as error:
            raise RemoteError(f"{self._location}: access is denied") from error
        except (exceptions.BaseError, OSError, ValueError) as error:
            if _NO_CONNECTION.search(str(error)):
                raise UnreachableError(f"{self._location}: it does not answer") from error
            raise RemoteError(f"{self._location}: {_told(error)}") from error


def _open(location: Location) -> ObjectStore:
    return from_url(
        str(location),
        client_options={
            "timeout": _PART_SECONDS,
            "connect_timeout": _CONNECT_SECONDS,
            # Options given here hide those of the environment, and this one belongs there.
            "allow_http": os.environ.get(_ALLOW_HTTP[location.scheme], "").lower() == "true",
        },
        retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_SECONDS},
    )


def _told(error: BaseException) -> str:
    """Return why a call failed, without the request and the Rust types of the library's text."""
    text = reason(error)
    if "404 Not Found" in text:
        return "there is no such bucket"
    # Some stores refuse a listing otherwise than a file.
    if "403 Forbidden" in text:
        return "access is denied"
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        return "there are no credentials: the environment has none, and this machine no role"
    return _PREFIX.sub("", text)
