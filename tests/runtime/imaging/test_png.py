"""Plain PNG files: Pillow's pixels, and everything else is left to Pillow."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.imaging import transform
from foveate_runtime.imaging.decode import ImageError, ImageLimits
from foveate_runtime.imaging.png import decode_plain
from foveate_runtime.imaging.transform import prepare

from ...encoding import encoded

SPEC = InputSpec(
    height=28, width=28, channels=1, resize=28, interpolation="bilinear", mean=(0.0,), std=(1.0,)
)


def smooth(height: int, width: int, channels: int) -> Image.Image:
    """Return a picture for which Pillow takes several of PNG's filters."""
    rows, columns = np.mgrid[:height, :width]
    planes = [(rows * columns + 9 * rows * plane) % 251 for plane in range(channels)]
    return Image.fromarray(
        np.stack(planes, axis=2).astype(np.uint8).squeeze(2 if channels == 1 else ())
    )


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3, 4]),
    noise=st.booleans(),
    level=st.integers(0, 9),
)
def test_the_pixels_are_pillows(
    height: int, width: int, channels: int, noise: bool, level: int
) -> None:
    image = smooth(height, width, channels)
    if noise:
        shape = np.asarray(image).shape
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    pixels = decode_plain(
        encoded(image, compress_level=level), height=height, width=width, channels=channels
    )
    assert pixels is not None
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(image).reshape(height, width, channels))


def text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("by", "hand")
    return info


@pytest.mark.parametrize(
    "data",
    [
        encoded(smooth(28, 27, 1)),
        encoded(smooth(28, 28, 3)),
        encoded(smooth(28, 28, 1).convert("1")),
        encoded(smooth(28, 28, 1).convert("P")),
        encoded(smooth(28, 28, 1).convert("LA")),
        encoded(np.zeros((28, 28), dtype=np.uint16)),
        encoded(smooth(28, 28, 1), transparency=0),
        encoded(smooth(28, 28, 1), pnginfo=text()),
        encoded(smooth(28, 28, 1), exif=b"Exif\x00\x00"),
        b"",
        b"no picture",
    ],
    ids=[
        "size",
        "colour",
        "bits",
        "palette",
        "alpha",
        "deep",
        "mask",
        "text",
        "exif",
        "no",
        "text",
    ],
)
def test_what_is_not_plain_is_left(data: bytes) -> None:
    assert decode_plain(data, height=28, width=28, channels=1) is None


def test_what_is_not_whole_or_not_right_is_left() -> None:
    data = encoded(smooth(28, 28, 1))
    assert decode_plain(data, height=28, width=28, channels=1) is not None
    for place in range(len(data)):
        assert decode_plain(data[:place], height=28, width=28, channels=1) is None
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        assert decode_plain(bytes(damaged), height=28, width=28, channels=1) is None


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note for each file that was tried whether it was plain."""
    tried: list[bool] = []
    decode: Callable = decode_plain

    def noting(data: bytes, **size: int) -> object:
        pixels = decode(data, **size)
        tried.append(pixels is not None)
        return pixels

    monkeypatch.setattr(transform, "decode_plain", noting)
    return tried


def test_a_digit_is_prepared_as_by_pillow(
    plain: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(smooth(28, 28, 1))
    found, view = prepare(data, SPEC, ImageLimits())
    monkeypatch.setattr(transform, "_SMALL_BYTES", 0)
    wanted, wanted_view = prepare(data, SPEC, ImageLimits())
    assert plain == [True]
    assert view == wanted_view
    np.testing.assert_array_equal(found, wanted)


def test_the_limits_hold_for_it_as_well(plain: list[bool]) -> None:
    data = encoded(smooth(28, 28, 1))
    for limits in (ImageLimits(max_bytes=len(data) - 1), ImageLimits(max_pixels=28 * 28 - 1)):
        with pytest.raises(ImageError) as raised:
            prepare(data, SPEC, limits)
        assert raised.value.reason == "IMAGE_TOO_LARGE"
    assert plain == []
