"""From a picture to a network's input, as evaluation and serving do it."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.errors import DataError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name of a picture's mode, by its channels."""

RANGELESS = "has floating-point values, whose range no picture states; write it with 8 or 16 bits"


def preprocess(image: Image.Image, spec: InputSpec) -> torch.Tensor:
    """Fit one picture to a network's input and normalise it.

    Args:
        image: of any mode and size.
        spec: what the network takes.

    Returns:
        float32 [channels, height, width], normalised.

    Raises:
        DataError: what `upright` raises.
    """
    picture = upright(image, spec.channels)
    if picture.size != (spec.width, spec.height):
        picture = _centre(_resized(picture, spec), spec)
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(spec.mean), list(spec.std)),
        ]
    )
    result: torch.Tensor = transform(picture)
    return result


def upright(image: Image.Image, channels: int) -> Image.Image:
    """Return a picture with 1, 3 or 4 channels, turned as its EXIF orientation says.

    As the server decodes it: sixteen bits are scaled to eight, and alpha is dropped
    where it is not the fourth channel.

    Raises:
        DataError: the network takes another number of channels, or the picture's
            values have no range of their own.
    """
    if channels not in MODES:
        raise DataError(f"a picture has 1, 3 or 4 channels, and the network takes {channels}")
    picture = ImageOps.exif_transpose(image)
    if picture.mode == "F":
        raise DataError(f"a picture {RANGELESS}")
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.uint32) >> 8
        picture = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if channels < 4:
        picture.info.pop("transparency", None)
    return picture.convert(MODES[channels])


def _resized(picture: Image.Image, spec: InputSpec) -> Image.Image:
    """Return the picture at the size of which the centre is taken."""
    wanted = list(spec.frame) if spec.fit == "squash" else [spec.resize]
    if spec.fit == "pad":
        height, width = spec.frame
        wanted = _scaled(picture, max(picture.height / height, picture.width / width))
    filtered = v2.InterpolationMode(spec.interpolation)
    resized: Image.Image = functional.resize(picture, wanted, filtered, antialias=True)
    if spec.fit == "crop" and (resized.width < spec.width or resized.height < spec.height):
        covering = min(picture.height / spec.height, picture.width / spec.width)
        resized = functional.resize(picture, _scaled(picture, covering), filtered, antialias=True)
    return resized


def _scaled(picture: Image.Image, ratio: float) -> list[int]:
    """Return a picture's height and width, divided and rounded to whole pixels."""
    return [max(1, round(picture.height / ratio)), max(1, round(picture.width / ratio))]


def _centre(picture: Image.Image, spec: InputSpec) -> Image.Image:
    """Take the input's size out of the middle, with a border where the picture is smaller."""
    across, down = max(0, spec.width - picture.width), max(0, spec.height - picture.height)
    sides = [across // 2, down // 2, across - across // 2, down - down // 2]
    bordered = functional.pad(picture, sides, list(spec.border))
    cropped: Image.Image = functional.center_crop(bordered, [spec.height, spec.width])
    return cropped
