"""MNIST, in memory: 60,000 training and 10,000 test pictures of digits.

Its four IDX files lie in a folder (an argument, FOVEATE_MNIST_DIR, or the cache),
plain or gzipped; torchvision downloads them into the cache where they are not
there. The MD5 of every file is compared with the published one.
"""

import contextlib
import gzip
import hashlib
import os
import socket
import sys
import tempfile
import zlib
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
# The files' headers: a number, and the length of each axis.
_IMAGES_BEGIN, _LABELS_BEGIN = 16, 8
_SECONDS = 10.0


def load(split: Split, root: Path | None = None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images, uint8 [N, 28, 28], and the labels, int64 [N], of a split.

    Args:
        split: `train` or `test`.
        root: a folder that holds the IDX files, plain or gzipped. Without it,
            that of FOVEATE_MNIST_DIR; without that, the cache, which is filled
            when it lacks a file.

    Raises:
        DataError: the files cannot be had, or a file of the folder is missing or
            has another digest.
    """
    named = root or os.environ.get("FOVEATE_MNIST_DIR")
    folder = Path(named) if named else cache_folder()
    if not named and not all((folder / name).is_file() for name in FILES):
        _download(folder)
    images = _verified(folder, f"{_STEMS[split]}-images-idx3-ubyte")
    labels = _verified(folder, f"{_STEMS[split]}-labels-idx1-ubyte")
    digits = np.frombuffer(images, np.uint8, offset=_IMAGES_BEGIN).reshape(-1, 28, 28)
    return digits, np.frombuffer(labels, np.uint8, offset=_LABELS_BEGIN).astype(np.int64)


def cache_folder() -> Path:
    """Return where the files are kept: `foveate/mnist` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "foveate" / "mnist"


def _download(folder: Path) -> None:
    """Bring the files into `folder`.

    They are renamed into place one by one, so that several processes may download
    at once and none sees half a file.
    """
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary,
            contextlib.redirect_stdout(sys.stderr),
        ):
            raw = Path(datasets.MNIST(temporary, download=True).raw_folder)
            for name in FILES:
                (raw / name).replace(folder / name)
    except (OSError, EOFError, RuntimeError, zlib.error) as error:
        raise DataError(
            f"MNIST cannot be downloaded ({' '.join(str(error).split())}); give a folder with its "
            "IDX files: --data DIR or FOVEATE_MNIST_DIR"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def _verified(folder: Path, name: str) -> bytearray:
    """Return the content of a file of the folder, plain or gzipped."""
    path = folder / name
    try:
        if path.is_file():
            content = path.read_bytes()
        else:
            content = gzip.decompress(path.with_name(f"{name}.gz").read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"MNIST: {path}: No such file, nor {name}.gz") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"MNIST: {path}: cannot be read ({error})") from error
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != FILES[name]:
        raise DataError(f"MNIST: {path} has the MD5 {digest} instead of {FILES[name]}")
    return bytearray(content)  # arrays of it can be written to, as torch wants
