"""A bundle in an image of a real registry: pushed, pulled, built on another, and refused."""

import base64
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests

from foveate_runtime.bundle.bundle import Bundle
from foveate_runtime.commands import pull, push
from foveate_runtime.remote.image import MEDIA_LAYER, MEDIA_MANIFEST, Image, Layer
from foveate_runtime.remote.location import Location
from foveate_runtime.remote.mirror import Mirror
from foveate_runtime.remote.registry import _Client, _reference

from .conftest import free_port, listening, newest

REGISTRY = shutil.which("docker-registry") or shutil.which("registry")
pytestmark = pytest.mark.skipif(
    REGISTRY is None, reason="no registry: apt-get install docker-registry"
)

CONFIGURATION = """\
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
PROTECTED = "auth: {{htpasswd: {{realm: tests, path: {passwords}}}}}\n"
# bcrypt of "s3cret", which is no secret.
PASSWORDS = "me:$2b$04$j9BfEjxoxOUeIUmOQFMrn.DBLTuygiMzg28R6C3g6xmCp/NqsQzVW\n"


@contextmanager
def running_registry(folder: Path, extra: str = "") -> Iterator[str]:
    port = free_port()
    file = folder / "registry.yml"
    text = CONFIGURATION.format(folder=folder / "registry", port=port)
    file.write_text(text + extra, encoding="utf-8")
    with listening([REGISTRY, "serve", file], port, folder / "registry.log"):
        yield f"127.0.0.1:{port}"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    with running_registry(tmp_path) as address:
        yield address


def image_of(registry: str, name: str) -> tuple[dict, dict]:
    """Return an image's manifest and its configuration."""
    url = f"http://{registry}/v2/{name.replace(':', '/manifests/')}"
    manifest = requests.get(url, headers={"Accept": MEDIA_MANIFEST}, timeout=60).json()
    return manifest, json.loads(blob(registry, name, manifest["config"]["digest"]))


def blob(registry: str, name: str, digest: str) -> bytes:
    url = f"http://{registry}/v2/{name.partition(':')[0]}/blobs/{digest}"
    return requests.get(url, timeout=60).content


def push_image(registry: str, name: str, *members: tuple[tarfile.TarInfo, bytes]) -> Layer:
    """Push an image of one layer with these members, as anybody may; return the layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    layer = Layer.of(buffer.getvalue(), MEDIA_LAYER)
    image = Image.empty(datetime(2026, 1, 1, tzinfo=UTC))
    config = json.loads(image.config)
    config["rootfs"]["diff_ids"] = [layer.digest]
    image = Image(json.dumps(config).encode(), (layer,))
    client = _Client(_reference(f"{registry}/{name}", name), name)
    for content, described in ((buffer.getvalue(), layer), (image.config, image.config_layer)):
        client.upload(_written(content), described)
    client.upload_manifest(image.manifest)
    return layer


def _written(content: bytes) -> Path:
    place = Path.cwd() / hashlib.sha256(content).hexdigest()
    place.write_bytes(content)
    return place


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


def test_a_bundle_goes_there_and_back(
    registry: str, bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"oci://{registry}/team/colours:1"
    assert push.main([str(bundles / "colours/1"), url]) == 0
    exact = capsys.readouterr().out.strip()
    assert exact.startswith(f"oci://{registry}/team/colours@sha256:")
    # The same bundle is the same image.
    assert push.main([str(bundles / "colours/1"), url]) == 0
    assert capsys.readouterr().out.strip() == exact

    for source in (url, exact):
        folder = tmp_path / "pulled"
        assert pull.main([source, "--repository", str(folder)]) == 0
        assert capsys.readouterr().out == f"{folder}/colours/1\n"
        assert Bundle.open(folder / "colours/1").digest == Bundle.open(bundles / "colours/1").digest
        shutil.rmtree(folder)

    assert pull.main([f"oci://{registry}/team/none:1", "--repository", str(tmp_path / "x")]) == 1
    assert capsys.readouterr().err.endswith("/team/none:1: there is no such image\n")


def test_an_image_is_a_modelcar_on_its_base(registry: str, bundles: Path) -> None:
    base = push_image(registry, "busybox:1", (tarfile.TarInfo("bin/sh"), b"a shell"))
    target = f"oci://{registry}/colours:1"
    arguments = [str(bundles / "colours/1"), target, "--base", f"{registry}/busybox:1"]
    assert push.main(arguments) == 0
    manifest, config = image_of(registry, "colours:1")
    first, second = manifest["layers"]
    assert first["digest"] == base.digest
    contents = [blob(registry, "colours:1", each["digest"]) for each in (first, second)]
    # OCI's image specification: of layers that are not compressed.
    assert config["rootfs"]["diff_ids"] == [
        f"sha256:{hashlib.sha256(content).hexdigest()}" for content in contents
    ]
    with tarfile.open(fileobj=io.BytesIO(contents[1])) as archive:
        assert {"models", "models/colours", "models/colours/1"} <= set(archive.getnames())
        file = archive.extractfile("models/colours/1/model.onnx")
        assert file is not None
        assert file.read() == (bundles / "colours/1/model.onnx").read_bytes()


def test_links_and_names_that_lead_elsewhere_are_not_followed(
    registry: str, bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    shutil.copy(bundles / "colours/1/model.onnx", secret)
    link = tarfile.TarInfo("models/colours/1/model.onnx")
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    members = [(link, b""), (tarfile.TarInfo("models/../../escaped"), b"hostile")]
    for name in ("manifest.json", "labels.txt"):
        content = (bundles / "colours/1" / name).read_bytes()
        members.append((tarfile.TarInfo(f"models/colours/1/{name}"), content))
    push_image(registry, "hostile:1", *members)
    folder = tmp_path / "pulled"
    assert pull.main([f"oci://{registry}/hostile:1", "--repository", str(folder)]) == 1
    assert capsys.readouterr().err == "foveate pull: model.onnx: no such file\n"
    assert not folder.exists()
    assert not list(tmp_path.rglob("escaped"))


def test_a_layer_that_is_another_one_leaves_the_old_version(
    registry: str, bundles: Path, tmp_path: Path
) -> None:
    url = f"oci://{registry}/colours:latest"
    mirror = Mirror(Location.parse(url), tmp_path / "mirror", newest)
    assert push.main([str(bundles / "colours/1"), url]) == 0
    assert mirror.sync() == []
    assert push.main([str(bundles / "colours/2"), url]) == 0
    manifest, _ = image_of(registry, "colours:latest")
    digest = manifest["layers"][0]["digest"].removeprefix("sha256:")
    (data,) = (tmp_path / "registry").rglob(f"{digest}/data")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    warnings: list[str] = []
    mirror.open(warnings.append)
    assert warnings == [
        f"{url}: the size or the digest of a layer is another one; what was fetched before is used"
    ]
    assert [path.name for path in (tmp_path / "mirror/colours").iterdir()] == ["1"]
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert mirror.sync() == []
    assert [path.name for path in (tmp_path / "mirror/colours").iterdir()] == ["2"]


def test_credentials_are_those_of_docker(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(PASSWORDS, encoding="utf-8")
    with running_registry(tmp_path, PROTECTED.format(passwords=passwords)) as address:
        arguments = [str(bundles / "colours/1"), f"oci://{address}/colours:1"]
        assert push.main(arguments) == 1
        assert "access is denied" in capsys.readouterr().err
        for password, code in (("wr0ng", 1), ("s3cret", 0)):
            pair = base64.b64encode(f"me:{password}".encode()).decode()
            file = tmp_path / "docker/config.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps({"auths": {address: {"auth": pair}}}), encoding="utf-8")
            assert push.main(arguments) == code
            said = capsys.readouterr()
            assert password not in said.out + said.err
            assert pair not in said.out + said.err
