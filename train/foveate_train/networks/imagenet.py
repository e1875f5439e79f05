"""What the networks for ImageNet have in common."""

from typing import Annotated

from pydantic import Field

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.sources.torchvision import imagenet_labels

Classes = Annotated[int, Field(ge=1)]
"""The number of classes, which a builder takes as `num_classes`."""

# The mean and standard deviation of the training pictures' pixels; the crop of
# 224 from 256 pixels is that of most papers.
IMAGENET_INPUT = InputSpec(
    height=224,
    width=224,
    channels=3,
    resize=256,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def labels(classes: int) -> tuple[str, ...]:
    """Return ImageNet's labels for 1000 classes, and numbers for any other count."""
    names = imagenet_labels()
    return names if classes == len(names) else tuple(map(str, range(classes)))
