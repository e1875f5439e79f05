"""Training and the server prepare pictures as timm's evaluation does, whatever its crop mode."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.preprocessing import NETWORKS, compare, pillow_alone, served, trained
from PIL import Image
from skimage import data
from timm.data.transforms_factory import transforms_imagenet_eval

from foveate_runtime.evaluation.labelled import image_files
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.transform import prepare
from foveate_train.data.preprocess import preprocess
from foveate_train.sources.timm import input_spec

from ..encoding import encoded
from .conftest import IMAGENET_DIR

PHOTOGRAPHS = {
    "chelsea": data.chelsea(),
    "coffee, upright": data.coffee().swapaxes(0, 1),
    "wide": data.coffee()[100:220],
    "a strip": data.astronaut()[:, 250:261],
    "tiny": data.rocket()[::16, ::16],
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize(
    ("mode", "size", "crop_pct"),
    [
        ("center", (224, 224), 0.875),
        ("center", (96, 256), 1.0),
        ("squash", (224, 224), 1.0),
        ("squash", (240, 240), 0.9),
        ("squash", (1024, 768), 1.0),
        ("border", (224, 224), 1.0),
        ("border", (224, 224), 0.8),
        ("border", (96, 160), 1.0),
    ],
)
def test_every_crop_mode_is_timms(
    name: str, mode: str, size: tuple[int, int], crop_pct: float
) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = Image.fromarray(np.ascontiguousarray(PHOTOGRAPHS[name]))
    theirs = transforms_imagenet_eval(
        img_size=size,
        crop_pct=crop_pct,
        crop_mode=mode,
        interpolation="bicubic",
        mean=mean,
        std=std,
    )(image)
    spec = input_spec(
        "timm:network",
        {
            "input_size": (3, *size),
            "crop_pct": crop_pct,
            "crop_mode": mode,
            "interpolation": "bicubic",
            "mean": mean,
            "std": std,
        },
    )
    np.testing.assert_allclose(preprocess(image, spec), theirs, atol=1e-5)

    seen, _ = prepare(encoded(image), spec, ImageLimits())
    levels = 255 * (theirs.permute(1, 2, 0).numpy() * std + mean)
    assert np.abs(seen - levels).mean() < 0.3


@pytest.mark.skipif(IMAGENET_DIR is None, reason="FOVEATE_IMAGENET_DIR names no photographs")
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_photographs_are_prepared_as_timm_does(network: str) -> None:
    files = image_files(Path(IMAGENET_DIR or ""))
    assert files
    assert compare(network, files, trained).largest < 0.01
    with_extra = compare(network, files, served)
    assert with_extra.mean < 0.3
    assert with_extra.largest <= 32
    with pillow_alone():
        alone = compare(network, files, served)
    assert alone.mean < 0.05
    assert alone.largest <= 16
