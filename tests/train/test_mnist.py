import gc
import gzip
import hashlib
import http.server
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torchvision import datasets

from foveate_train.data import mnist
from foveate_train.data.memory import InMemory
from foveate_train.errors import DataError
from foveate_train.networks.digits import MNIST_INPUT


@pytest.fixture(scope="module")
def files():
    """The contents of the four real files, by name."""
    mnist.load("test")
    folder = mnist.cache_folder()
    return MappingProxyType({name: (folder / name).read_bytes() for name in mnist.FILES})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache and no mirror: a machine that reaches nothing."""
    monkeypatch.delenv("FOVEATE_MNIST_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [])
    return tmp_path / "cache" / "foveate" / "mnist"


@pytest.fixture
def mirror(tmp_path, cache, files, monkeypatch):
    """The folder of the files that a mirror on this machine serves."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    # Of the same files, and packed by another gzip.
    monkeypatch.setattr(datasets.MNIST, "resources", _pack(folder, files))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False  # closing it waits for them, and they close their sockets
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
        threading.Thread(target=server.serve_forever).start()
        yield folder
        server.shutdown()


def _pack(folder, files):
    """Write the files gzipped; return what torchvision is to believe of them."""
    resources = []
    for name, content in files.items():
        packed = gzip.compress(content, compresslevel=1)
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed, usedforsecurity=False).hexdigest()))
    return resources


def _write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def test_the_pictures_are_those_of_mnist():
    images, labels = mnist.load("train")
    assert (images.shape, images.dtype) == ((60_000, 28, 28), np.uint8)
    assert (labels.shape, labels.dtype) == ((60_000,), np.int64)
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    # The published mean and deviation, which the networks normalise with.
    assert images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert images.std() / 255 == pytest.approx(0.3081, abs=1e-4)
    images, labels = mnist.load("test")
    assert (len(images), len(labels)) == (10_000, 10_000)
    assert (labels == 1).mean() == pytest.approx(0.1135)


def test_a_mirror_has_the_files(mirror, cache, files):
    assert len(mnist.load("train")[0]) == 60_000
    assert {name: (cache / name).read_bytes() for name in mnist.FILES} == files


def test_downloading_at_once_is_safe(mirror, cache):
    with ThreadPoolExecutor(3) as pool:
        counts = pool.map(lambda _: len(mnist.load("test")[0]), range(3))
        assert list(counts) == [10_000] * 3
    assert {path.name for path in cache.iterdir()} == set(mnist.FILES)


def test_what_was_tried_is_told(mirror, cache, capsys):
    (mirror / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError) as refusal:
        mnist.load("test")
    message = str(refusal.value)
    assert "--data DIR or FOVEATE_MNIST_DIR" in message
    assert "http://127.0.0.1" in message
    assert "404" in message
    assert list(cache.iterdir()) == []
    # What a command prints as JSON stands alone.
    assert capsys.readouterr().out == ""
    # torchvision leaves the connection of a refused download to the collector.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        del refusal
        gc.collect()


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: gzip.compress(b"other"),
        lambda packed: packed[:-20],
        lambda packed: b"<html>",
    ],
)
def test_a_mirror_is_not_believed(damage, mirror, cache):
    path = mirror / "train-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"downloaded .*labels-idx1-ubyte\.gz.* corrupted"):
        mnist.load("test")
    assert list(cache.iterdir()) == []


def test_a_damaged_folder_is_refused(cache, files, tmp_path):
    _pack(tmp_path, files)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte: cannot be read"):
        mnist.load("test", tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_local_folder_wins(packed, cache, files, tmp_path, monkeypatch):
    folder = tmp_path / "local"
    folder.mkdir()
    (_pack if packed else _write)(folder, files)
    assert len(mnist.load("test", folder)[0]) == 10_000
    monkeypatch.setenv("FOVEATE_MNIST_DIR", str(folder))
    assert len(mnist.load("test")[0]) == 10_000
    assert not cache.exists()


def test_a_full_cache_needs_no_network(cache, files):
    _write(cache, files)
    assert len(mnist.load("test")[0]) == 10_000


def test_a_local_folder_that_lacks_a_file_names_it(cache, tmp_path):
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte: No such file"):
        mnist.load("test", tmp_path)


def test_a_local_file_with_another_digest_is_refused(cache, files, tmp_path):
    changed = dict(files)
    changed["t10k-labels-idx1-ubyte"] = changed["t10k-labels-idx1-ubyte"][:-1] + b"\x03"
    _write(tmp_path, changed)
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte has the MD5 .* instead of 27ae3e"):
        mnist.load("test", tmp_path)


def test_the_digest_sees_every_pixel_and_label():
    images, labels = map(torch.from_numpy, mnist.load("test"))

    def digest(images, labels):
        return InMemory(images[:, None], labels, MNIST_INPUT).digest

    whole = digest(images, labels)
    assert whole == digest(images.clone(), labels.clone())
    other = images.clone()
    other[5000, 3, 3] ^= 1
    assert digest(other, labels) != whole
    assert digest(images, labels.roll(1)) != whole
    assert digest(images[:-1], labels[:-1]) != whole
