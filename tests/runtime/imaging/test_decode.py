"""Every picture that Pillow reads arrives as RGB or grey, and every other one as an ImageError."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from foveate_runtime.imaging.decode import FORMATS, ImageError, ImageLimits, decode

LIMITS = ImageLimits()


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return Image.fromarray(data.chelsea())


def pixels(data: bytes, channels: int = 3) -> np.ndarray:
    return np.asarray(decode(data, channels=channels, limits=LIMITS).image).astype(int)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(cat: Image.Image, kind: str) -> None:
    # A GIF has 256 colours, and JPEG and WebP lose a little.
    difference = np.abs(pixels(encoded(cat, kind)) - np.asarray(cat))
    assert difference.mean() < 8


def test_another_format_is_refused(cat: Image.Image) -> None:
    with pytest.raises(ImageError) as raised:
        decode(encoded(cat, "TIFF"), channels=3, limits=LIMITS)
    assert raised.value.reason == "IMAGE_UNSUPPORTED"


def test_cmyk_becomes_rgb(cat: Image.Image) -> None:
    difference = np.abs(pixels(encoded(cat.convert("CMYK"), "JPEG", quality=95)) - np.asarray(cat))
    assert difference.mean() < 4


def test_sixteen_bit_grey_is_scaled_not_clipped(cat: Image.Image) -> None:
    grey = np.asarray(cat.convert("L"))
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(pixels(encoded(sixteen), channels=1), grey)
    assert np.array_equal(pixels(encoded(sixteen))[..., 2], grey)


def test_sixteen_bits_of_colour_and_alpha_are_scaled_too(cat: Image.Image) -> None:
    small = np.asarray(cat)[:40, :60]
    alpha = np.full((40, 60, 1), 77, np.uint8)
    for channels in (small[..., :1], small[..., :1] * 0 + 9), (small,), (small, alpha):
        values = np.concatenate(channels, axis=2)
        file = png_of_16_bits(values.astype(np.uint16) * 257)
        grey, rgb, rgba = (pixels(file, count) for count in (1, 3, 4))
        colour = np.broadcast_to(values[..., :1], (40, 60, 3)) if len(values[0, 0]) == 2 else small
        assert np.array_equal(rgb, colour)
        assert np.array_equal(rgba[..., :3], colour)
        assert (rgba[..., 3] == (77 if len(values[0, 0]) == 4 else rgba[0, 0, 3])).all()
        assert grey.shape == (40, 60)


def png_of_16_bits(values: np.ndarray) -> bytes:
    """Write a PNG of 2 (grey, alpha), 3 or 4 channels, which Pillow does not."""
    height, width, channels = values.shape
    rows = values.astype(">u2").tobytes()
    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in parts
    )


def test_alpha_is_the_fourth_channel(cat: Image.Image) -> None:
    transparent = cat.convert("RGBA")
    transparent.putalpha(77)
    assert np.array_equal(pixels(encoded(transparent), 4), np.asarray(transparent))
    assert (pixels(encoded(cat, "JPEG"), 4)[..., 3] == 255).all()
    assert (pixels(encoded(cat.convert("CMYK"), "JPEG"), 4)[..., 3] == 255).all()
    palette = cat.quantize(64)
    data = encoded(palette, transparency=bytes(range(64)))
    indices = np.asarray(palette)
    assert np.array_equal(pixels(data, 4)[..., 3], indices)


def test_no_picture_has_other_channels(cat: Image.Image) -> None:
    with pytest.raises(ImageError, match="1, 3 or 4 channels, and the model takes 48") as raised:
        decode(encoded(cat), channels=48, limits=LIMITS)
    assert raised.value.reason == "IMAGE_UNSUPPORTED"


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped(cat: Image.Image, mode: str) -> None:
    transparent = cat.convert(mode)
    transparent.putalpha(0)
    expected = np.asarray(cat.convert("L").convert("RGB") if mode == "LA" else cat)
    assert np.array_equal(pixels(encoded(transparent)), expected)


def test_a_palette_with_transparency_keeps_its_colours(cat: Image.Image) -> None:
    palette = cat.quantize(64)
    data = encoded(palette, transparency=bytes(range(64)))
    assert np.array_equal(pixels(data), np.asarray(palette.convert("RGB")))


def test_of_an_animation_the_first_frame_is_taken(cat: Image.Image) -> None:
    black = Image.new("RGB", cat.size)
    data = encoded(cat, "GIF", save_all=True, append_images=[black, black])
    assert np.abs(pixels(data) - np.asarray(cat)).mean() < 8


def test_grey_is_the_luma(cat: Image.Image) -> None:
    assert np.array_equal(pixels(encoded(cat), channels=1), np.asarray(cat.convert("L")))


def test_a_jpeg_is_decoded_at_a_reduced_scale_that_is_still_large_enough(cat: Image.Image) -> None:
    decoded = decode(encoded(cat, "JPEG"), channels=3, limits=LIMITS, shorter_side=100)
    assert (decoded.width, decoded.height) == cat.size == (451, 300)
    assert decoded.size == (226, 150)
    assert decoded.extent == (225.5, 150.0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "IMAGE_EMPTY"),
        (b"just some text, and no picture at all\n", "IMAGE_UNSUPPORTED"),
        (b"\x89PNG\r\n\x1a\n", "IMAGE_UNSUPPORTED"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "IMAGE_CORRUPT"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as raised:
        decode(data, channels=3, limits=LIMITS)
    assert raised.value.reason == reason


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_refused(cat: Image.Image, kind: str) -> None:
    data = encoded(cat, kind)
    with pytest.raises(ImageError) as raised:
        decode(data[: len(data) // 2], channels=3, limits=LIMITS)
    assert raised.value.reason in {"IMAGE_CORRUPT", "IMAGE_UNSUPPORTED"}


def test_the_limit_of_bytes(cat: Image.Image) -> None:
    data = encoded(cat)
    decode(data, channels=3, limits=ImageLimits(max_bytes=len(data)))
    with pytest.raises(ImageError, match=f"limit is {len(data) - 1} bytes") as raised:
        decode(data, channels=3, limits=ImageLimits(max_bytes=len(data) - 1))
    assert raised.value.reason == "IMAGE_TOO_LARGE"
    assert raised.value.limit == len(data) - 1


def test_the_limit_of_pixels(cat: Image.Image) -> None:
    data, size = encoded(cat), cat.width * cat.height
    decode(data, channels=3, limits=ImageLimits(max_pixels=size))
    with pytest.raises(ImageError, match=f"limit is {size - 1} pixels") as raised:
        decode(data, channels=3, limits=ImageLimits(max_pixels=size - 1))
    assert raised.value.reason == "IMAGE_TOO_LARGE"
    assert raised.value.limit == size - 1


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    # The header alone: there are no pixels to decode.
    header = encoded(Image.new("1", (8, 8)), "PNG")
    bomb = header[:16] + side.to_bytes(4, "big") * 2 + header[24:]
    crc = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError) as raised:
        decode(bomb[:29] + crc + bomb[33:], channels=3, limits=LIMITS)
    assert raised.value.reason == "IMAGE_TOO_LARGE"
    assert raised.value.limit == LIMITS.max_pixels


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(FORMATS),
    damage=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
    ),
)
def test_damage_leads_to_a_picture_or_an_image_error(
    kind: str, damage: list[tuple[float, int]]
) -> None:
    data = bytearray(encoded(Image.fromarray(small_cat()), kind))
    for position, value in damage:
        data[int(position * len(data))] = value
    try:
        decoded = decode(bytes(data), channels=3, limits=ImageLimits(max_pixels=1_000_000))
    except ImageError:
        return
    assert np.asarray(decoded.image).shape == (*decoded.size[::-1], 3)


def small_cat() -> np.ndarray:
    return data.chelsea()[::8, ::8].copy()
