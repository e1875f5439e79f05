"""The identity of the data that a classifier was trained on."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def digest(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """Return `sha256:<hex>` over the shapes, pixels and labels of a data set in memory."""
    state = hashlib.sha256()
    for array in (images, labels):
        state.update(f"{array.dtype.str}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).data)
    return f"sha256:{state.hexdigest()}"
