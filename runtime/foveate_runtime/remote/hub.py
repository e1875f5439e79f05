"""Bundles on the Hugging Face Hub, by its own client."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.bundle.manifest import SIGNATURE_FILE
from foveate_runtime.remote.location import Location, LocationError
from foveate_runtime.remote.store import (
    Entry,
    Progress,
    RemoteError,
    UnreachableError,
    names_of,
    reason,
)

_CHUNK = 8 << 20
_SECONDS = 30.0
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base of the errors of httpx, whose name differs from one version of the client to another."""
_MAIN = "main"
_CARD = "README.md"


class HubStore:
    """A repository of models on the Hub: `hf://OWNER/NAME[@REVISION][/FOLDER]`.

    A bundle lies at its root, beside its card, or several in `<model>/<version>/`.
    The token is the Hub client's: of the variable HF_TOKEN or of `hf auth login`;
    HF_ENDPOINT names another hub.
    """

    def __init__(self, location: Location, scratch: Path) -> None:
        owner, _, rest = location.place.partition("/")
        named, _, folder = rest.partition("/")
        name, at, revision = named.partition("@")
        if not name or (at and not revision):
            raise LocationError(
                f"{location}: it must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
            )
        self._location = location
        self._id = f"{owner}/{name}"
        self._branch = revision or _MAIN
        self._folder = folder
        self._scratch = scratch
        self._commit = ""
        self._api = HfApi()
        disable_progress_bars()

    def revision(self) -> str:
        """Return the commit of the branch or tag; later reads are of this commit."""
        with self._errors():
            info = self._api.model_info(self._id, revision=self._branch, timeout=_SECONDS)
        self._commit = info.sha or ""
        return self._commit

    def entries(self) -> Iterator[Entry]:
        """Yield the files of the commit."""
        commit = self._commit or self.revision()
        prefix = f"{self._folder}/" if self._folder else ""
        with self._errors():
            for found in self._api.list_repo_tree(
                self._id, self._folder or None, recursive=True, revision=commit
            ):
                if isinstance(found, RepoFile):
                    tag = found.lfs.sha256 if found.lfs else found.blob_id
                    yield Entry(found.path.removeprefix(prefix), found.size, tag)

    def read(self, entry: Entry) -> Iterator[bytes]:
        """Yield the bytes of a file, which the Hub's client brings as a whole."""
        commit = self._commit or self.revision()
        name = f"{self._folder}/{entry.path}" if self._folder else entry.path
        with TemporaryDirectory(dir=self._scratch, prefix="hub-") as folder:
            with self._errors():
                path = hf_hub_download(
                    self._id, name, revision=commit, local_dir=folder, etag_timeout=_SECONDS
                )
            with Path(path).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk

    def push(self, bundle: Bundle, card: str, progress: Progress) -> str:
        """Make one commit of the bundle and its card, at the root of the repository."""
        manifest = bundle.manifest
        named = f"{manifest.name}/{manifest.version}"
        total = sum(entry.size for entry in manifest.files.values())
        progress(named, 0, total)
        with TemporaryDirectory(dir=self._scratch, prefix="hub-") as made, self._errors():
            folder = Path(made)
            for name in names_of(bundle):
                place = folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(bundle.path / name)
            (folder / _CARD).write_text(card, encoding="utf-8")
            self._api.create_repo(self._id, repo_type="model", exist_ok=True)
            if self._branch != _MAIN:
                self._api.create_branch(self._id, branch=self._branch, exist_ok=True)
            self._api.upload_folder(
                repo_id=self._id,
                repo_type="model",
                folder_path=folder,
                path_in_repo=self._folder or None,
                revision=self._branch,
                commit_message=f"{manifest.name}, version {manifest.version}",
                # What an earlier version had and this one has not goes with it.
                delete_patterns=["model*", "engines/*", SIGNATURE_FILE],
            )
        progress(named, total, total)
        return str(self._location)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except GatedRepoError as error:
            raise RemoteError(f"{self._location}: access is denied") from error
        except RepositoryNotFoundError as error:
            raise RemoteError(
                f"{self._location}: there is no such repository, or the token may not read it"
            ) from error
        except RevisionNotFoundError as error:
            raise RemoteError(f"{self._location}: there is no revision {self._branch!r}") from error
        except HfHubHTTPError as error:
            raise RemoteError(f"{self._location}: {_status(error)}") from error
        except (_HTTP_ERROR, LocalEntryNotFoundError) as error:
            raise UnreachableError(f"{self._location}: it does not answer") from error
        except (HFValidationError, OSError, ValueError) as error:
            raise RemoteError(f"{self._location}: {reason(error)}") from error


def _status(error: HfHubHTTPError) -> str:
    status = error.response.status_code if error.response is not None else 0
    if status == HTTPStatus.UNAUTHORIZED:
        return "the credentials are refused"
    if status == HTTPStatus.FORBIDDEN:
        return "access is denied"
    return reason(error)
