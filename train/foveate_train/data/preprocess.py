"""From a picture to a network's input, as evaluation and serving do it."""

import torch
from PIL import Image
from torchvision.transforms import v2

from foveate_train.classifier import InputSpec
from foveate_train.errors import DataError

MODES = {1: "L", 3: "RGB"}
"""Pillow's name of a picture's mode, by its channels."""


def preprocess(image: Image.Image, spec: InputSpec) -> torch.Tensor:
    """Resize, crop and normalise one picture.

    Args:
        image: of any mode and size.
        spec: what the network takes.

    Returns:
        float32 [channels, height, width], normalised.

    Raises:
        DataError: the network takes something other than grey or colour.
    """
    if spec.channels not in MODES:
        raise DataError(f"a picture has 1 or 3 channels, and the network takes {spec.channels}")
    picture = image.convert(MODES[spec.channels])
    transform = v2.Compose(
        [
            v2.Resize(spec.resize, v2.InterpolationMode(spec.interpolation), antialias=True),
            v2.CenterCrop((spec.height, spec.width)),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(spec.mean), list(spec.std)),
        ]
    )
    result: torch.Tensor = transform(picture)
    return result
