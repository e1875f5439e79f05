"""Both libraries resample alike, and a part may lie anywhere in the picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from foveate_runtime.imaging import resample as module
from foveate_runtime.imaging.resample import resample

CAT = Image.fromarray(data.chelsea())


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    "box",
    [(0.0, 0.0, 451.0, 300.0), (75.4, 0.3, 375.1, 299.9), (200.2, 110.7, 240.9, 160.1)],
    ids=["all of it", "the centre", "a small part"],
)
def test_both_libraries_and_both_kinds_of_picture_agree(
    interpolation: str, box: module.Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [resample(image, (224, 192), interpolation, box) for image in (CAT, np.asarray(CAT))]
    monkeypatch.setattr(module, "cykooz_resizer", None)
    expected = [resample(image, (224, 192), interpolation, box) for image in (CAT, np.asarray(CAT))]
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(*expected)
    assert found[0].shape == (192, 224, 3)
    difference = np.abs(found[0].astype(int) - expected[0])
    assert difference.mean() < 0.3
    assert difference.max() <= 8


def test_grey_pictures_have_no_third_dimension() -> None:
    found = resample(CAT.convert("L"), (28, 28), "bilinear", (0.0, 0.0, 451.0, 300.0))
    assert (found.shape, found.dtype) == ((28, 28), np.uint8)


@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    corners=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
)
def test_a_part_that_ends_at_the_edge_is_within_the_picture(
    width: int, height: int, corners: tuple[float, float]
) -> None:
    pixels = np.full((height, width, 3), (10, 200, 30), dtype=np.uint8)
    left, top = corners[0] * width, corners[1] * height
    found = resample(pixels, (8, 8), "bicubic", (left, top, float(width), float(height)))
    assert (found == (10, 200, 30)).all()


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("scale", [1 / 5, 1 / 3, 1 / 2, 3 / 5, 1.0, 5 / 3, 3.0])
def test_a_part_whose_first_pixel_has_a_source_pixels_centre(kernel: str, scale: float) -> None:
    """Enlarged by a cubic kernel of cykooz-resizer, these end the process."""
    pixels = np.full((90, 60, 3), (10, 200, 30), dtype=np.uint8)
    for centre in range(1, 12):
        start = centre + 0.5 - scale / 2
        part = (start, start, start + 8 * scale, start + 16 * scale)
        for image in (pixels, Image.fromarray(pixels)):
            assert (resample(image, (8, 16), kernel, part) == (10, 200, 30)).all()


def test_a_picture_of_the_size_already_is_left_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 20, 3), dtype=np.uint8)
    for kernel in ("nearest", "bilinear", "bicubic", "lanczos"):
        for image in (pixels, Image.fromarray(pixels)):
            same = resample(image, (20, 28), kernel, (0.0, 0.0, 20.0, 28.0))
            np.testing.assert_array_equal(same, pixels)
        resized = Image.fromarray(pixels).resize(
            (20, 28), getattr(Image.Resampling, kernel.upper())
        )
        np.testing.assert_array_equal(np.asarray(resized), pixels)
