"""How far a picture's way into a network lies from timm's own evaluation transform.

    python -m benchmarks.preprocessing [--images DIR]

For one configuration of each of timm's crop modes every photograph is prepared by
timm, by the server, with the extra `images` and with Pillow alone, and by training.
Compared are the levels from 0 to 255 that the network's input is made of.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from timm.data import create_transform

from benchmarks import pages
from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.evaluation.labelled import image_files
from foveate_runtime.imaging import jpeg, resample
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.transform import prepare
from foveate_train.data.preprocess import preprocess
from foveate_train.sources.timm import input_spec

PAGE = pages.DOCS / "export" / "bring-your-own.md"

NETWORKS = {
    "center": "resnet50.a1_in1k",
    "squash": "tf_efficientnetv2_b3.in21k_ft_in1k",
    "border": "deepseek_vit_412m.deepseek_v4_1_flash",
}
"""A configuration of each crop mode."""

Prepare = Callable[[Path, InputSpec], NDArray[np.float64]]
"""Turns a file into levels, [height, width, channels]."""


@dataclass(frozen=True)
class Difference:
    """In levels: the largest of all, and the mean."""

    largest: float
    mean: float


def compare(network: str, files: Sequence[Path], way: Prepare) -> Difference:
    """Return how far `way` lies from timm's evaluation of the network's configuration."""
    configuration = timm.get_pretrained_cfg(network).to_dict()
    spec = input_spec(network, configuration)
    wanted = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    transform = create_transform(
        **{name: configuration[name] for name in wanted}, is_training=False, normalize=False
    )
    apart = []
    for file in files:
        with Image.open(file) as image:
            theirs = transform(image.convert("RGB")).permute(1, 2, 0).numpy().astype(float)
        apart.append(np.abs(way(file, spec) - theirs))
    return Difference(
        max(float(each.max()) for each in apart), float(np.mean([each.mean() for each in apart]))
    )


def served(file: Path, spec: InputSpec) -> NDArray[np.float64]:
    """Prepare a picture as the server does."""
    return prepare(file.read_bytes(), spec, ImageLimits())[0].astype(float)


def trained(file: Path, spec: InputSpec) -> NDArray[np.float64]:
    """Prepare a picture as training does, less the normalisation."""
    with Image.open(file) as image:
        normalised = preprocess(image, spec).permute(1, 2, 0).numpy().astype(float)
    return 255 * (normalised * np.array(spec.std) + np.array(spec.mean))


@contextmanager
def pillow_alone() -> Iterator[None]:
    """Leave the extra `images` unused."""
    kept = jpeg.simplejpeg, resample.cykooz_resizer
    jpeg.simplejpeg = resample.cykooz_resizer = None
    try:
        yield
    finally:
        jpeg.simplejpeg, resample.cykooz_resizer = kept


def measure(files: Sequence[Path]) -> dict[str, Mapping[str, Difference]]:
    """Return the differences by crop mode and by the way of the picture."""
    found: dict[str, Mapping[str, Difference]] = {}
    for mode, network in NETWORKS.items():
        ways = {"server": compare(network, files, served)}
        with pillow_alone():
            ways["server, Pillow alone"] = compare(network, files, served)
        found[mode] = ways | {"training": compare(network, files, trained)}
    return found


def page_part(found: Mapping[str, Mapping[str, Difference]]) -> str:
    """Return the table of the page."""
    head = ["crop mode", "configuration", *next(iter(found.values()))]
    rows = [
        [
            f"`{mode}`",
            f"`{NETWORKS[mode]}`",
            *(f"{each.largest:.0f}, {each.mean:.2f}" for each in ways.values()),
        ]
        for mode, ways in found.items()
    ]
    return pages.table(head, rows)


def main() -> None:
    """Parse the command line, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, default=os.environ.get("FOVEATE_IMAGENET_DIR"))
    parser.add_argument("--page", type=Path, default=PAGE, help="whose part is written")
    options = parser.parse_args()
    if options.images is None:
        parser.error("--images DIR is needed where FOVEATE_IMAGENET_DIR is not set")
    text = page_part(measure(image_files(Path(options.images))))
    pages.write_part(options.page, "preprocessing", text)
    Console().print(text, soft_wrap=True)


if __name__ == "__main__":
    main()
