"""Pixels as a classifier in torch takes them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate_runtime.bundle.manifest import InputSpec


def normalise(
    images: NDArray[np.uint8], spec: InputSpec, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return (images / 255 - mean) / std, channels first: `dtype` [N, C, H, W]."""
    scaled = images.astype(np.float64) / 255
    normalised = (scaled - np.asarray(spec.mean)) / np.asarray(spec.std)
    # Channels stay innermost in memory, which convolutions on a CPU prefer.
    return torch.from_numpy(normalised).to(dtype).permute(0, 3, 1, 2)
