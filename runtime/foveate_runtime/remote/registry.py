"""Bundles in images of a registry: files under `models/` in the layers of an OCI image.

KServe mounts such an image as it is (a modelcar), and so do Kubernetes' image volumes.
The format is that of the OCI image and distribution specifications, version 1.1.
"""

import hashlib
import ipaddress
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any
from urllib.parse import urljoin

import requests
from oras import auth
from oras.container import Container
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from foveate_runtime.bundle.bundle import MAX_MANIFEST_BYTES, Bundle
from foveate_runtime.remote.image import MEDIA_MANIFEST, Image, Layer, write_layer
from foveate_runtime.remote.location import Location, LocationError
from foveate_runtime.remote.store import (
    MAX_BYTES,
    Entry,
    Progress,
    RemoteError,
    UnreachableError,
    reason,
)

_CHUNK = 1 << 20
_SECONDS = (5.0, 60.0)
"""The longest waits for a connection and for the next bytes."""
_RETRIES = Retry(total=3, backoff_factor=0.5, allowed_methods=["GET", "HEAD"])
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (MEDIA_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ROOT = "models/"
_MAX_LAYERS = 256
_REFUSED = (401, 403)


@dataclass(frozen=True)
class _Member:
    layer: Path
    member: tarfile.TarInfo


class RegistryStore:
    """An image: `oci://HOST/NAME[:TAG]` or `oci://HOST/NAME@sha256:DIGEST`.

    Credentials are those of `docker login`: of `$DOCKER_CONFIG/config.json`, or of its
    credential helpers. A registry on this machine is called without TLS, as by Docker.
    """

    def __init__(self, location: Location, scratch: Path, base: str) -> None:
        self._location = location
        self._client = _Client(_reference(location.place, str(location)), str(location))
        self._base = base
        self._scratch = scratch
        self._members: dict[str, _Member] = {}

    def revision(self) -> str:
        """Return the digest of the image's manifest."""
        return self._client.manifest().digest

    def entries(self) -> Iterator[Entry]:
        """Yield the files under `models/`; the layers are brought for it, and checked.

        They stay in the scratch folder, where `read` finds them.
        """
        image = self._client.manifest()
        folder = Path(mkdtemp(dir=self._scratch, prefix="image-"))
        self._members = {}
        for number, layer in enumerate(image.layers):
            path = folder / str(number)
            self._client.download(layer, path)
            self._members |= {
                name: _Member(path, member) for name, member in _members(path, self._location)
            }
        for name, found in self._members.items():
            yield Entry(name, found.member.size, image.digest)

    def read(self, entry: Entry) -> Iterator[bytes]:
        """Yield the bytes of a file out of its layer."""
        if not self._members:
            # The listing was remembered from another process.
            for _ in self.entries():
                pass
        found = self._members[entry.path]
        with _tar_errors(self._location), tarfile.open(found.layer) as archive:
            file = archive.extractfile(found.member)
            while file is not None and (chunk := file.read(_CHUNK)):
                yield chunk

    def push(self, bundle: Bundle, card: str, progress: Progress) -> str:
        """Push an image with the bundle under `/models/<model>/<version>`.

        The card goes along as `/models/README.md`. With a base image, its layers come first.
        """
        manifest = bundle.manifest
        named = f"{manifest.name}/{manifest.version}"
        base = Image.empty(manifest.created)
        source = None
        if self._base:
            source = _Client(_reference(self._base.removeprefix("oci://"), self._base), self._base)
            base = source.image()
        with TemporaryDirectory(dir=self._scratch, prefix="image-") as made:
            folder = Path(made)
            layer = write_layer(bundle, card, folder / "layer")
            total = layer.size + sum(each.size for each in base.layers)
            done = 0
            for each in base.layers:
                if source is not None and not self._client.has(each.digest):
                    source.download(each, folder / "base")
                    self._client.upload(folder / "base", each)
                done += each.size
                progress(named, done, total)
            self._client.upload(folder / "layer", layer)
            image = base.with_layer(layer, bundle)
            config = folder / "config"
            config.write_bytes(image.config)
            self._client.upload(config, image.config_layer)
        progress(named, total, total)
        digest = self._client.upload_manifest(image.manifest)
        return f"oci://{self._client.name}@{digest}"


def _reference(place: str, shown: str) -> Container:
    try:
        container = Container(place)
    except ValueError:
        container = None
    host = place.partition("/")[0]
    if container is None or "/" not in place or not re.search(r"[.:]|^localhost$", host):
        raise LocationError(
            f"{shown}: it must be oci://HOST/NAME, with a tag or a digest behind it"
        )
    if container.digest and not _DIGEST.fullmatch(container.digest):
        raise LocationError(f"{shown}: the digest must be sha256: and 64 hexadecimal digits")
    return container


@dataclass(frozen=True)
class _Manifest:
    digest: str
    content: Mapping[str, Any]
    layers: tuple[Layer, ...]


class _Client:
    """The calls of the distribution specification that are needed, each with a timeout."""

    def __init__(self, container: Container, shown: str) -> None:
        self._container = container
        self._shown = shown
        self._root = f"{_scheme(container.registry)}://{container.registry}"
        self._session = requests.Session()
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=_RETRIES))
        self._headers: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The image's name, without tag and digest."""
        return f"{self._container.registry}/{self._container.api_prefix}"

    def manifest(self, digest: str = "") -> _Manifest:
        """Return the image's manifest, of an index that of linux/amd64 or the first."""
        wanted = digest or self._container.digest or self._container.tag
        response = self._call(
            "GET", f"manifests/{wanted}", headers={"Accept": ", ".join((*_MANIFESTS, *_INDEXES))}
        )
        text = _bounded(response, self._shown)
        found = f"sha256:{hashlib.sha256(text).hexdigest()}"
        if wanted.startswith("sha256:") and found != wanted:
            raise RemoteError(f"{self._shown}: the digest of its manifest is not {wanted}")
        try:
            content = json.loads(text)
            if not digest and "manifests" in content:
                return self.manifest(_check_digest(_choose(content["manifests"])["digest"]))
            layers = tuple(
                Layer(_check_digest(each["digest"]), int(each["size"]), str(each["mediaType"]))
                for each in content["layers"]
            )
            _check_digest(content["config"]["digest"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RemoteError(f"{self._shown}: its manifest is no image's") from error
        if len(layers) > _MAX_LAYERS or sum(layer.size for layer in layers) > MAX_BYTES:
            raise RemoteError(f"{self._shown}: more than {_MAX_LAYERS} layers or {MAX_BYTES} bytes")
        return _Manifest(found, content, layers)

    def image(self) -> Image:
        """Return the image with its configuration, to build on."""
        manifest = self.manifest()
        digest = manifest.content["config"]["digest"]
        config = _bounded(self._call("GET", f"blobs/{digest}"), self._shown)
        if f"sha256:{hashlib.sha256(config).hexdigest()}" != digest:
            raise RemoteError(f"{self._shown}: the digest of its configuration is another one")
        return Image(config, manifest.layers)

    def has(self, digest: str) -> bool:
        """Return whether the registry has a blob."""
        return self._request("HEAD", f"{self._blobs}/{digest}").status_code == requests.codes.ok

    def download(self, layer: Layer, path: Path) -> None:
        """Bring a layer into a file; raises RemoteError where its size or digest differs."""
        found, size = hashlib.sha256(), 0
        with (
            self._errors(),
            path.open("wb") as file,
            self._call("GET", f"blobs/{layer.digest}", stream=True) as response,
        ):
            for chunk in response.iter_content(_CHUNK):
                size += len(chunk)
                if size > layer.size:
                    break
                found.update(chunk)
                file.write(chunk)
        if size != layer.size or f"sha256:{found.hexdigest()}" != layer.digest:
            raise RemoteError(f"{self._shown}: the size or the digest of a layer is another one")

    def upload(self, path: Path, layer: Layer) -> None:
        """Upload a file as a blob, unless the registry has it."""
        if self.has(layer.digest):
            return
        session = self._call("POST", "blobs/uploads/")
        place = urljoin(session.url, session.headers.get("Location", ""))
        mark = "&" if "?" in place else "?"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(layer.size)}
        with path.open("rb") as file:
            response = self._request(
                "PUT", f"{place}{mark}digest={layer.digest}", headers=headers, data=file
            )
        self._check(response)

    def upload_manifest(self, manifest: bytes) -> str:
        """Upload the manifest under the image's tag, and return its digest."""
        if self._container.digest:
            raise LocationError(f"{self._shown}: an image is pushed to a tag, not to a digest")
        self._call(
            "PUT",
            f"manifests/{self._container.tag}",
            headers={"Content-Type": MEDIA_MANIFEST},
            data=manifest,
        )
        return f"sha256:{hashlib.sha256(manifest).hexdigest()}"

    @property
    def _blobs(self) -> str:
        return f"{self._root}/v2/{self._container.api_prefix}/blobs"

    def _call(self, method: str, path: str, **options: Any) -> requests.Response:
        url = f"{self._root}/v2/{self._container.api_prefix}/{path}"
        return self._check(self._request(method, url, **options))

    def _request(self, method: str, url: str, **options: Any) -> requests.Response:
        headers = options.pop("headers", {})
        options.setdefault("timeout", _SECONDS)
        with self._errors():
            response = self._session.request(
                method, url, headers=headers | self._headers, **options
            )
            if response.status_code not in _REFUSED or not self._authenticate(response):
                return response
            if hasattr(options.get("data"), "seek"):
                options["data"].seek(0)
            return self._session.request(method, url, headers=headers | self._headers, **options)

    def _authenticate(self, response: requests.Response) -> bool:
        """Set the credentials for a challenge; return whether there are any to try."""
        challenge = response.headers.get("WWW-Authenticate", "")
        kind = "basic" if challenge.lower().startswith("basic") else "token"
        before = dict(self._headers)
        backend = auth.get_auth_backend(
            kind, self._session, insecure=self._root.startswith("http:")
        )
        backend.load_configs(self._container, configs=_docker_configuration())
        if kind == "basic" and not getattr(backend, "_basic_auth", None):
            return False
        headers, changed = backend.authenticate_request(response, {})
        found = headers.get("Authorization")
        if not changed or not found:
            return False
        self._headers = {"Authorization": found}
        return self._headers != before

    def _check(self, response: requests.Response) -> requests.Response:
        status = response.status_code
        if status in _REFUSED:
            raise RemoteError(f"{self._shown}: access is denied; docker login gives credentials")
        if status == requests.codes.not_found:
            raise RemoteError(f"{self._shown}: there is no such image")
        if not response.ok:
            raise RemoteError(f"{self._shown}: the registry answers {status} {response.reason}")
        return response

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except requests.ConnectionError as error:
            raise UnreachableError(f"{self._shown}: it does not answer") from error
        except (requests.RequestException, auth.AuthenticationException, OSError) as error:
            raise RemoteError(f"{self._shown}: {reason(error)}") from error


def _scheme(registry: str) -> str:
    host = registry.rpartition(":")[0] or registry
    if host == "localhost":
        return "http"
    try:
        return "http" if ipaddress.ip_address(host.strip("[]")).is_loopback else "https"
    except ValueError:
        return "https"


def _docker_configuration() -> list[str]:
    """Return the file of DOCKER_CONFIG, which oras does not read, where there is one."""
    folder = os.environ.get("DOCKER_CONFIG")
    file = Path(folder or "", "config.json")
    return [str(file)] if folder and file.is_file() else []


def _bounded(response: requests.Response, shown: str) -> bytes:
    if len(response.content) > MAX_MANIFEST_BYTES:
        raise RemoteError(f"{shown}: its manifest is larger than {MAX_MANIFEST_BYTES} bytes")
    return response.content


def _check_digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise ValueError(text)
    return text


def _choose(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    wanted = {"os": "linux", "architecture": "amd64"}
    fits = [each for each in manifests if wanted.items() <= each.get("platform", {}).items()]
    return (fits or manifests)[0]


def _members(path: Path, location: Location) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the plain files of a layer under `models/`, by their path below it."""
    with _tar_errors(location), tarfile.open(path) as archive:
        for member in archive:
            # A compressed layer may unfold into more than it weighs.
            if member.offset_data + member.size > MAX_BYTES:
                raise RemoteError(f"{location}: a layer unfolds into more than {MAX_BYTES} bytes")
            name = member.name.removeprefix("./")
            # Links are passed over: they would lead to other files than they seem to.
            if member.isreg() and name.startswith(_ROOT):
                yield name.removeprefix(_ROOT), member


@contextmanager
def _tar_errors(location: Location) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, OSError) as error:
        raise RemoteError(f"{location}: a layer cannot be read ({reason(error)})") from error
