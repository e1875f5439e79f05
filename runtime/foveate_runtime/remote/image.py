"""Images of a registry, as the OCI image specification 1.1 describes them."""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.remote.store import names_of

MEDIA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_LAYER = "application/vnd.oci.image.layer.v1.tar"

_FILE, _FOLDER = 0o644, 0o755
_CARD = "README.md"


@dataclass(frozen=True)
class Layer:
    """A blob of an image: its digest `sha256:<hex>`, its size in bytes and its media type."""

    digest: str
    size: int
    media_type: str

    @classmethod
    def of(cls, content: bytes, media_type: str) -> Self:
        """Return the description of a blob."""
        return cls(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content), media_type)

    @property
    def descriptor(self) -> dict[str, object]:
        """The layer as a manifest names it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Image:
    """An image: the bytes of its configuration, and its layers."""

    config: bytes
    layers: tuple[Layer, ...]
    annotations: tuple[tuple[str, str], ...] = ()

    @classmethod
    def empty(cls, created: datetime) -> Self:
        """Return an image without layers, for Linux; an image must name an architecture."""
        config = {
            "created": created.isoformat(),
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": []},
            "history": [],
        }
        return cls(json.dumps(config).encode(), ())

    def with_layer(self, layer: Layer, bundle: Bundle) -> "Image":
        """Return it with an uncompressed layer on top, which holds `bundle`."""
        manifest = bundle.manifest
        config = json.loads(self.config)
        # The digest of an uncompressed layer is that of its content.
        config["rootfs"]["diff_ids"].append(layer.digest)
        config.setdefault("history", []).append(
            {
                "created": manifest.created.isoformat(),
                "created_by": f"foveate push {manifest.name}/{manifest.version}",
            }
        )
        annotations = {
            "org.opencontainers.image.title": manifest.name,
            "org.opencontainers.image.version": str(manifest.version),
            "org.opencontainers.image.created": manifest.created.isoformat(),
        }
        return Image(json.dumps(config).encode(), (*self.layers, layer), tuple(annotations.items()))

    @property
    def config_layer(self) -> Layer:
        """The blob of the configuration."""
        return Layer.of(self.config, MEDIA_CONFIG)

    @property
    def manifest(self) -> bytes:
        """The image's manifest."""
        content = {
            "schemaVersion": 2,
            "mediaType": MEDIA_MANIFEST,
            "config": self.config_layer.descriptor,
            "layers": [layer.descriptor for layer in self.layers],
            "annotations": dict(self.annotations),
        }
        return json.dumps(content).encode()


def write_layer(bundle: Bundle, card: str, path: Path) -> Layer:
    """Write a bundle as a tar file with `models/<model>/<version>/`; the same one each time.

    The card is `models/README.md` in it.
    """
    manifest = bundle.manifest
    created = int(manifest.created.timestamp())
    version = f"models/{manifest.name}/{manifest.version}"
    names = names_of(bundle)
    parents = {
        parent.as_posix()
        for name in names
        for parent in Path(version, name).parents
        if parent != Path()
    }
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for folder in sorted(parents):
            entry = _entry(folder, created)
            entry.type, entry.mode = tarfile.DIRTYPE, _FOLDER
            archive.addfile(entry)
        text = card.encode()
        entry = _entry(f"models/{_CARD}", created)
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
        for name in names:
            entry = _entry(f"{version}/{name}", created)
            entry.size = (bundle.path / name).stat().st_size
            with (bundle.path / name).open("rb") as file:
                archive.addfile(entry, file)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Layer(f"sha256:{digest}", path.stat().st_size, MEDIA_LAYER)


def _entry(name: str, created: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = _FILE, created
    return entry
