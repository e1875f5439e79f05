"""simplejpeg gives the pixels that Pillow gives, and leaves to Pillow what is unusual."""

import io

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from skimage import data

from foveate_runtime.imaging import jpeg
from foveate_runtime.imaging.decode import ImageError, ImageLimits, decode
from foveate_runtime.imaging.jpeg import decode_jpeg, power_of_two_scale

LIMITS = ImageLimits()


def encoded(pixels: np.ndarray, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("options", [{"quality": 90}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_pixels_are_pillows(scale: int, options: dict[str, object], mode: str) -> None:
    file = encoded(data.chelsea()[:299, :449], mode, **options)
    found = decode_jpeg(file, mode, 449, 299, scale)
    with Image.open(io.BytesIO(file)) as image:
        image.draft(None, (449 // scale, 299 // scale))
        expected = np.asarray(image)
    assert found is not None
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("length", "least", "scale"), [(511, 256, 1), (512, 256, 2), (3000, 512, 4), (90000, 1, 8)]
)
def test_the_scale_keeps_to_the_least_length(length: int, least: int, scale: int) -> None:
    assert power_of_two_scale(length, least) == scale


def test_a_damaged_file_is_judged_by_pillow() -> None:
    file = encoded(data.chelsea())
    assert decode_jpeg(file[: len(file) // 2], "RGB", 451, 300, 1) is None
    with pytest.raises(ImageError, match="truncated"):
        decode(file[: len(file) // 2], channels=3, limits=LIMITS)


@pytest.mark.parametrize("side", [None, 70])
@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 3), ("L", 1), ("RGB", 1), ("RGB", 4), ("CMYK", 3)]
)
def test_other_colours_are_pillows(
    mode: str, channels: int, side: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = encoded(data.chelsea(), mode)
    found = decode(file, channels=channels, limits=LIMITS, shorter_side=side)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    expected = decode(file, channels=channels, limits=LIMITS, shorter_side=side)
    assert found.extent == expected.extent
    np.testing.assert_array_equal(np.asarray(found.image), np.asarray(expected.image))


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("L", 1), ("RGB", 1), ("RGB", 4)])
def test_other_colours_are_decoded_once(
    mode: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, decoded = encoded(data.chelsea(), mode), []
    simple = jpeg.simplejpeg.decode_jpeg

    def count(*arguments: object, **options: object) -> object:
        decoded.append(arguments)
        return simple(*arguments, **options)

    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", count)
    monkeypatch.setattr(JpegImageFile, "load", lambda _: pytest.fail("Pillow decodes it as well"))
    decode(file, channels=channels, limits=LIMITS)
    assert len(decoded) == 1


def test_without_simplejpeg_there_is_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded(data.chelsea())
    quick = decode(file, channels=3, limits=LIMITS, shorter_side=150)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    slow = decode(file, channels=3, limits=LIMITS, shorter_side=150)
    assert isinstance(quick.image, np.ndarray)
    assert isinstance(slow.image, Image.Image)
    assert (quick.size, quick.extent) == (slow.size, slow.extent) == ((226, 150), (225.5, 150.0))
    np.testing.assert_array_equal(quick.image, np.asarray(slow.image))
