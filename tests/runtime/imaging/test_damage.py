"""What viewers show is decoded, with a warning where it is damaged; the rest says what is wrong."""

import base64
import gzip
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from skimage import data

from foveate_runtime.imaging import jpeg
from foveate_runtime.imaging.decode import (
    DAMAGED_DATA,
    DAMAGED_METADATA,
    DAMAGED_PROFILE,
    MISSING_END,
    WRONG_LENGTH,
    ImageError,
    ImageLimits,
    decode,
)

from ...encoding import encoded

LIMITS = ImageLimits()
WIDTH, HEIGHT = 64, 48
PICTURE = Image.fromarray(data.chelsea()).resize((WIDTH, HEIGHT))
COLOUR = np.asarray(PICTURE)
TURNED = PICTURE.rotate(180)


def replaced(file: bytes, at: int, value: bytes) -> bytes:
    return file[:at] + value + file[at + len(value) :]


def chunk(name: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + checksum


def without_chunk(file: bytes, name: bytes) -> bytes:
    start = file.index(name) - 4
    length = int.from_bytes(file[start : start + 4], "big")
    return file[:start] + file[start + 12 + length :]


def bmp(
    bits: int, compression: int, pixels: bytes, *, masks: bytes = b"", height: int = 0
) -> bytes:
    start = 14 + 40 + len(masks)
    head = struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    size = 40, WIDTH, height or HEIGHT, 1, bits, compression, len(pixels), 0, 0, 0, 0
    return b"BM" + head + struct.pack("<IiiHHIIiiII", *size) + masks + pixels


def of_16_bits(colour: np.ndarray) -> bytes:
    red, green, blue = (colour[..., i].astype(np.uint16) for i in range(3))
    return ((red >> 3) << 11 | (green >> 2) << 5 | blue >> 3).astype("<u2").tobytes()


JPEG = encoded(PICTURE, "JPEG", quality=92)
CMYK = encoded(PICTURE.convert("CMYK"), "JPEG", quality=92)
RESTARTS = encoded(PICTURE, "JPEG", quality=92, restart_marker_blocks=2)
PNG = encoded(PICTURE)
GIF = encoded(PICTURE, "GIF")
WEBP = encoded(PICTURE, "WEBP", quality=95)
MOVING = encoded(PICTURE, "WEBP", quality=95, save_all=True, append_images=[TURNED])
RGB_565 = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
FRAME = JPEG.index(b"\xff\xc0")
FILM = np.random.default_rng(0).bytes(3_000_000)

SHOWN: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "a JPEG with zeros before its end": (JPEG[:-2] + bytes(9) + JPEG[-2:], ()),
    "a JPEG in red, green and blue": (encoded(PICTURE, "JPEG", quality=92, keep_rgb=True), ()),
    "a JPEG in CMYK": (CMYK, ()),
    "a JPEG in CMYK without its end": (CMYK[:-2], (MISSING_END,)),
    "a JPEG with junk between its segments": (JPEG[:20] + b"junk" + JPEG[20:], (DAMAGED_DATA,)),
    "a JPEG with a wrong restart": (
        RESTARTS.replace(b"\xff\xd2", b"\xff\xd5", 1),
        (DAMAGED_DATA,),
    ),
    "a JPEG whose EXIF is zeros": (
        encoded(PICTURE, "JPEG", quality=92, exif=b"Exif\0\0" + bytes(8)),
        (DAMAGED_METADATA,),
    ),
    "a JPEG with a damaged profile": (
        JPEG[:2] + b"\xff\xe2\0\x12ICC_PROFILE\0\5\3xx" + JPEG[2:],
        (DAMAGED_PROFILE,),
    ),
    "two pictures in one JPEG": (
        encoded(PICTURE, "MPO", quality=92, save_all=True, append_images=[TURNED]),
        (),
    ),
    "a JPEG with a film behind it": (JPEG + FILM, ()),
    "a PNG with pixels of a wrong checksum": (
        replaced(PNG, PNG.index(b"IEND") - 8, b"\0\0\0\0"),
        (),
    ),
    "a PNG with a transparency that is too long": (
        PNG[:33] + chunk(b"tRNS", bytes(300)) + PNG[33:],
        (),
    ),
    "a moving PNG": (encoded(PICTURE, "PNG", save_all=True, append_images=[TURNED]), ()),
    "a GIF without its end": (GIF[:-2], ()),
    "a GIF whose screen has no size": (replaced(GIF, 6, bytes(4)), ()),
    "a moving GIF that ends in its second frame": (
        encoded(PICTURE, "GIF", save_all=True, append_images=[TURNED])[:-200],
        (),
    ),
    "a WebP that says it is longer": (replaced(WEBP, 4, b"\0\0\1\0"), (WRONG_LENGTH,)),
    "a WebP that says it has no length": (replaced(WEBP, 4, bytes(4)), (WRONG_LENGTH,)),
    "a WebP with more behind it": (WEBP + b"more", ()),
    "a moving WebP": (MOVING, ()),
    "a moving WebP that ends in its second frame": (MOVING[:-40], (WRONG_LENGTH,)),
    "a BMP from its top down": (bmp(16, 3, of_16_bits(COLOUR), masks=RGB_565, height=-HEIGHT), ()),
    "a BMP of 16 bits": (bmp(16, 3, of_16_bits(COLOUR[::-1]), masks=RGB_565), ()),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_viewers_show_is_decoded(name: str) -> None:
    file, warnings = SHOWN[name]
    decoded = decode(file, channels=3, limits=LIMITS)
    difference = np.abs(np.asarray(decoded.image).astype(int) - COLOUR)
    # A GIF has 256 colours, and JPEG and WebP lose a little.
    assert difference.mean() < 8
    assert decoded.warnings == warnings


def damaged(file: bytes) -> bytes:
    """Return a JPEG of which four bytes are others, a quarter into the data of its scan."""
    start = file.index(b"\xff\xda")
    return replaced(file, start + (len(file) - start) // 4, b"\x55\xaa\x11\x22")


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_damage_that_changes_pixels_is_told(options: dict[str, object]) -> None:
    file = damaged(encoded(PICTURE, "JPEG", quality=92, **options))
    decoded = decode(file, channels=3, limits=LIMITS)
    assert np.abs(np.asarray(decoded.image).astype(int) - COLOUR).mean() > 2
    assert decoded.warnings == (DAMAGED_DATA,)


def test_a_missing_restart_is_told() -> None:
    at = RESTARTS.index(b"\xff\xd1")
    file = RESTARTS[:at] + RESTARTS[at + 2 :]
    assert decode(file, channels=3, limits=LIMITS).warnings == (DAMAGED_DATA,)


def test_scans_behind_the_end_do_not_count() -> None:
    assert FILM.count(b"\xff\xda") > 8
    few = ImageLimits(max_scans=1)
    assert decode(JPEG + FILM, channels=3, limits=few).warnings == ()
    # A comment between two scans may hold what looks like the end.
    progressive = encoded(PICTURE, "JPEG", progressive=True)
    scans = progressive.count(b"\xff\xda")
    second = progressive.index(b"\xff\xc4", progressive.index(b"\xff\xda"))
    comment = b"\xff\xfe\0\6\xff\xd9\xff\xd9"
    hidden = progressive[:second] + comment + progressive[second:]
    assert jpeg.count_scans(hidden, 1) == scans > 1
    with pytest.raises(ImageError, match=f"has {scans} scans"):
        decode(hidden, channels=3, limits=few)


UNREAD: dict[str, tuple[bytes, str]] = {
    "12 bits": (
        replaced(replaced(JPEG, FRAME + 1, b"\xc1"), FRAME + 4, b"\x0c"),
        "the JPEG has 12 bits a value, which is not read; save it as a PNG or a common JPEG",
    ),
    "lossless": (replaced(JPEG, FRAME + 1, b"\xc3"), "the JPEG is lossless"),
    "hierarchical": (replaced(JPEG, FRAME + 1, b"\xc5"), "the JPEG is hierarchical"),
    "no height": (replaced(JPEG, FRAME + 5, b"\0\0"), "the JPEG tells its height behind"),
    "two colours": (replaced(JPEG, FRAME + 9, b"\2"), "the JPEG has 2 colours a pixel"),
    "a BMP with masks": (
        bmp(16, 3, of_16_bits(COLOUR), masks=struct.pack("<III", 0xF00, 0xF0, 0xF)),
        "the BMP has a layout .*compression 3, 16 bits.*; save it as a PNG",
    ),
    "a BMP of no width": (replaced(encoded(PICTURE, "BMP"), 18, bytes(4)), "the BMP has a layout"),
    "a PNG in a BMP": (bmp(0, 5, PNG), "the BMP has a layout .*compression 5"),
    "a TIFF": (
        encoded(PICTURE, "TIFF"),
        "the bytes are a TIFF, and no picture in one of JPEG, PNG",
    ),
    "a HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "are a HEIC, and no"),
    "a HEIC by another brand": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99), "a HEIC"),
    "a JPEG 2000": (encoded(PICTURE, "JPEG2000"), "a JPEG 2000"),
    "an SVG": (b"\xef\xbb\xbf\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
    "an error page": (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "a PNG in gzip": (gzip.compress(PNG), "a gzip file"),
    "a JPEG as text": (base64.b64encode(JPEG), "a JPEG in Base64"),
    "a text": (b"Dear server,\n", "^the bytes are no picture in one of JPEG, PNG"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_is_named(name: str) -> None:
    file, told = UNREAD[name]
    with pytest.raises(ImageError, match=told) as raised:
        decode(file, channels=3, limits=LIMITS)
    assert raised.value.reason == "IMAGE_UNSUPPORTED"


PALETTE = encoded(PICTURE.quantize(16))
PIXELS = PNG.index(b"IDAT") - 4


def first_pixels_of(file: bytes, body: Callable[[bytes], bytes]) -> bytes:
    """Return a PNG whose chunk of pixels has another content, and its checksum."""
    length = int.from_bytes(file[PIXELS : PIXELS + 4], "big")
    start = PIXELS + 8
    return file[:PIXELS] + chunk(b"IDAT", body(file[start : start + length])) + chunk(b"IEND", b"")


DAMAGED: dict[str, tuple[bytes, str]] = {
    "a JPEG before its scan": (JPEG[:FRAME], f"it ends at byte {FRAME}, before its pixels"),
    "a JPEG in its scan": (JPEG[:-400], f"from byte {JPEG.index(bytes((255, 218)))} on, ends"),
    "a JPEG in CMYK in its scan": (CMYK[:-400] + CMYK[-2:], "ends before its last pixel"),
    "a PNG in its pixels": (
        PNG[:-400],
        f"it ends at byte {len(PNG) - 400}, within the chunk IDAT of byte {PIXELS}",
    ),
    "a PNG with another header": (
        replaced(PNG, 29, b"\0\0\0\0"),
        "the chunk IHDR of byte 8 has a wrong checksum",
    ),
    "a PNG with another palette": (
        replaced(PALETTE, PALETTE.index(b"PLTE") + 5, b"\x99"),
        "the chunk PLTE of byte 33 has a wrong checksum",
    ),
    "a PNG without its palette": (without_chunk(PALETTE, b"PLTE"), "it has no chunk PLTE$"),
    "a PNG with an empty palette": (
        without_chunk(PALETTE, b"PLTE").replace(PALETTE[:33], PALETTE[:33] + chunk(b"PLTE", b"")),
        "the chunk PLTE of byte 33 has 0 bytes: 3 a colour, up to 256 colours",
    ),
    "a PNG of no width": (
        PNG[:8] + chunk(b"IHDR", bytes(4) + PNG[20:29]) + PNG[33:],
        "the chunk IHDR of byte 8 says 0 x 48 pixels of 8 bits and the colour type 2",
    ),
    "a PNG without pixels": (without_chunk(PNG, b"IDAT"), "it has no chunk IDAT"),
    "a PNG with too few pixels": (
        first_pixels_of(PNG, lambda body: zlib.compress(zlib.decompress(body)[:-500])),
        "cannot be inflated, or are too few",
    ),
    "a WebP in its pixels": (
        WEBP[:-60],
        f"it ends at byte {len(WEBP) - 60}, within the chunk VP8 of byte 12",
    ),
    "a GIF in its pixels": (GIF[:-200], f"its {len(GIF) - 200} bytes end, or go wrong"),
    "a BMP in its pixels": (
        encoded(PICTURE, "BMP")[:-100],
        f"it ends at byte {54 + 9216 - 100}; its 64 x 48 pixels take {54 + 9216}",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_says_what_and_where(name: str) -> None:
    file, told = DAMAGED[name]
    with pytest.raises(ImageError, match=told) as raised:
        decode(file, channels=3, limits=LIMITS)
    assert raised.value.reason == "IMAGE_CORRUPT"
    assert str(raised.value).startswith("the picture is truncated or damaged: ")


def test_an_interlaced_picture_of_one_pixel() -> None:
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0\1\2\3")), (b"IEND", b""))
    file = PNG[:8] + b"".join(chunk(name, body) for name, body in parts)
    decoded = decode(file, channels=3, limits=LIMITS)
    assert np.asarray(decoded.image).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_there_is_not_means_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(PICTURE, "JPEG", exif=exif), channels=3, limits=LIMITS)
    assert (decoded.orientation.transpose, decoded.warnings) == (None, ())
