"""Every picture that Pillow reads arrives as RGB or grey, and every other one as an ImageError."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from skimage import data

from foveate_runtime.imaging import jpeg
from foveate_runtime.imaging.decode import (
    COLOUR_AS_GREY,
    DAMAGED_METADATA,
    FORMATS,
    MISSING_END,
    UPRIGHT,
    ImageError,
    ImageLimits,
    decode,
)
from foveate_runtime.imaging.jpeg import MAX_SCANS

from ...encoding import encoded

LIMITS = ImageLimits()


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    if checksum is None:
        checksum = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


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
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, part) for name, part in parts)


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


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_colours_that_become_grey_are_warned_of(cat: Image.Image, kind: str) -> None:
    found = decode(encoded(cat, kind), channels=1, limits=LIMITS)
    assert found.warnings == (COLOUR_AS_GREY,)
    grey = cat.convert("L").convert("RGB")
    assert decode(encoded(grey, kind), channels=1, limits=LIMITS).warnings == ()
    assert decode(encoded(cat, kind), channels=3, limits=LIMITS).warnings == ()


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
        (b"\x89PNG\r\n\x1a\n", "IMAGE_CORRUPT"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13), 1), "IMAGE_CORRUPT"),
        (b"\xff\xd8\xff\xe0\x00\x06JFIF", "IMAGE_CORRUPT"),
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


def jpeg_of_scans(image: Image.Image, scans: int) -> bytes:
    """Write a progressive JPEG whose last scan is repeated."""
    data = encoded(image, "JPEG", progressive=True)
    end = data.rindex(b"\xff\xd9")
    last = data.rindex(b"\xff\xda", 0, end)
    return data[:end] + data[last:end] * (scans - data.count(b"\xff\xda")) + data[end:]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_limit_of_scans_is_that_of_their_pixels_together(cat: Image.Image, mode: str) -> None:
    image = cat.convert(mode)
    for pixels, scans in ((image.width * image.height, MAX_SCANS), (1_000_000, 236)):
        limits = ImageLimits(max_pixels=pixels)
        decode(jpeg_of_scans(image, scans), channels=3, limits=limits)
        with pytest.raises(
            ImageError, match=f"has {scans + 1} scans; .* is {scans} scans"
        ) as raised:
            decode(jpeg_of_scans(image, scans + 1), channels=3, limits=limits)
        assert raised.value.reason == "IMAGE_UNSUPPORTED"
        assert raised.value.limit == scans


def test_many_scans_are_refused_by_default_before_they_are_decoded() -> None:
    bomb = jpeg_of_scans(Image.new("L", (540, 540), 128), 15_000)
    assert len(bomb) < 200_000
    with pytest.raises(ImageError, match="15000 scans; the limit for 291600 pixels is 5486 scans"):
        decode(bomb, channels=3, limits=LIMITS)


MEGABYTES = zlib.compress(bytes(2 << 20))

METADATA = {
    "profile": chunk(b"iCCP", b"profile\0\0" + MEGABYTES),
    "workflow": chunk(b"zTXt", b"workflow\0\0" + MEGABYTES),
    "inflated text": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + MEGABYTES),
    "inflated EXIF": chunk(b"zTXt", b"Raw profile type exif\0\0" + MEGABYTES),
    "EXIF of zeros": chunk(b"eXIf", bytes(8)),
    "no EXIF at all": chunk(b"eXIf", b""),
    "no hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  12\nno hexadecimal\n"),
    "wrong checksum": chunk(b"tEXt", b"Comment\0hello", 1),
    "wrong checksum of EXIF": chunk(b"eXIf", b"MM", 1),
    "short resolution": chunk(b"pHYs", b"\0"),
    "short transparency": chunk(b"tRNS", b"\0"),
    "text without end": chunk(b"zTXt", b"text\0\0" + zlib.compress(bytes(1 << 20))) * 80,
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("place", ["before the pixels", "behind them"])
def test_metadata_does_not_stand_in_the_way_of_a_pngs_pixels(
    cat: Image.Image, name: str, place: str
) -> None:
    data = encoded(cat)
    at = 33 if place == "before the pixels" else data.rindex(b"IEND") - 4
    decoded = decode(data[:at] + METADATA[name] + data[at:], channels=3, limits=LIMITS)
    assert np.array_equal(np.asarray(decoded.image), np.asarray(cat))
    assert decoded.orientation == UPRIGHT


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_malformed_exif_means_upright(cat: Image.Image, kind: str) -> None:
    data = encoded(cat, kind, exif=b"Exif\0\0" + bytes(8))
    assert decode(data, channels=3, limits=LIMITS).warnings == (DAMAGED_METADATA,)
    assert decode(data, channels=3, limits=LIMITS).orientation == UPRIGHT


def test_a_png_is_turned_as_its_metadata_says(cat: Image.Image) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    tiff = exif.tobytes()[6:]
    raw = b"\nexif\n%8d\n%s\n" % (len(tiff), tiff.hex().encode())
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    data = encoded(cat)
    for metadata in (
        chunk(b"eXIf", tiff),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ):
        for at in (33, data.rindex(b"IEND") - 4):
            found = decode(data[:at] + metadata + data[at:], channels=3, limits=LIMITS)
            assert found.orientation.transpose == Image.Transpose.ROTATE_270


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


@pytest.mark.parametrize("kind", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_may_lack_its_end_marker(cat: Image.Image, kind: str, progressive: bool) -> None:
    whole = encoded(cat.convert(kind), "JPEG", progressive=progressive)
    decoded = decode(whole[:-2], channels=3, limits=LIMITS)
    assert decoded.warnings == (MISSING_END,)
    assert np.array_equal(np.asarray(decoded.image), pixels(whole))


@pytest.mark.parametrize("side", [20_000, 65_000])
def test_a_large_jpeg_that_lacks_its_end_is_refused_undecoded(
    cat: Image.Image, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoded(cat, "JPEG", progressive=True)
    place = whole.index(b"\xff\xc2") + 5
    large = whole[:place] + 2 * side.to_bytes(2, "big") + whole[place + 4 : -2]
    decoded: list[bytes] = []
    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", lambda data, *_, **__: decoded.append(data))
    with pytest.raises(ImageError) as raised:
        decode(large, channels=3, limits=LIMITS)
    assert raised.value.reason == "IMAGE_TOO_LARGE"
    assert not decoded


@pytest.mark.parametrize("metadata", [b"", b"\0\0\0\4iCCPevil\0\0\0\0"])
def test_a_png_may_lack_its_end_chunk(cat: Image.Image, metadata: bytes) -> None:
    whole = encoded(cat, "PNG")
    data = whole[:33] + metadata + whole[33:]
    assert decode(data + b"what follows", channels=3, limits=LIMITS).warnings == ()
    for cut in (data[:-12], data[:-1], data[:-12] + b"\0" * 12):
        decoded = decode(cut, channels=3, limits=LIMITS)
        assert decoded.warnings == (MISSING_END,)
        assert np.array_equal(np.asarray(decoded.image), pixels(whole))


@pytest.mark.parametrize("kind", ["RGB", "L"])
@pytest.mark.parametrize("missing", [12, 400, 5000])
def test_a_jpeg_that_lacks_pixels_is_refused(cat: Image.Image, kind: str, missing: int) -> None:
    cut = encoded(cat.convert(kind), "JPEG")[:-missing]
    for file in (cut, cut + b"\xff", cut + b"\xff\xd9"):
        with pytest.raises(ImageError) as raised:
            decode(file, channels=3, limits=LIMITS)
        assert raised.value.reason == "IMAGE_CORRUPT"
