"""A file of a few megabytes may have millions of parts; those that people have keep theirs."""

import os
import struct
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from foveate_runtime.imaging import parts
from foveate_runtime.imaging.decode import ImageError, ImageLimits, decode

from ...encoding import encoded

LIMITS = ImageLimits()
IMAGENET_DIR = os.environ.get("FOVEATE_IMAGENET_DIR")
EXIF, PHOTOSHOP, XMP = b"Exif\0\0", b"Photoshop 3.0\0", b"http://ns.adobe.com/xap/1.0/\0"


def segment(marker: int, body: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg(before: bytes) -> bytes:
    """A photograph with bytes after its first marker."""
    file = encoded(data.chelsea(), "JPEG")
    return file[:2] + before + file[2:]


def png(chunks: int) -> bytes:
    """A photograph whose pixels lie in chunks of one byte, but for the last, after others."""
    file = encoded(data.chelsea())
    empty = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    at = file.index(b"IDAT") - 4
    return file[:at] + empty * chunks + file[at:]


def gif(blocks: int) -> bytes:
    """A picture after a comment of so many blocks."""
    file = encoded(data.chelsea(), "GIF")
    table = 13 + (3 << (file[10] & 7) + 1)
    return file[:table] + b"!\xfe" + b"\1x" * blocks + b"\0" + file[table:]


def bmp(width: int, height: int, runs: bytes) -> bytes:
    """A picture of RLE8, of 256 colours."""
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256))
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + 40 + len(palette)
    file = struct.pack("<IHHI", start + len(runs), 0, 0, start)
    return b"BM" + file + head + palette + runs


def run_lengths(rows: np.ndarray) -> bytes:
    """Encode uint8 [height, width] as runs, the lowest row first."""
    out = bytearray()
    for row in rows[::-1]:
        starts = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
        for first, end in pairwise(starts):
            for part in range(first, end, 255):
                out += bytes((min(255, end - part), row[first]))
        out += b"\0\0"
    return bytes(out) + b"\0\1"


def tags(count: int, size: int, *, order: str = "<", apart: bool = False) -> bytes:
    """EXIF of an orientation and so many tags of `size` bytes, which all lie at one place."""
    kinds = [(0x112, 3, 1, 6 if order == "<" else 6 << 16)]
    start = 8 + 2 + 12 * (count + 1) + 4
    kinds += [(0x8000 + i, 7, size, start + i * size * apart) for i in range(count)]
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(kinds))
    entries = b"".join(struct.pack(f"{order}HHII", *kind) for kind in kinds)
    return head + entries + bytes(4) + bytes(size * (count if apart else 1))


def in_jpeg(exif: bytes, prefix: bytes = EXIF, marker: int = 0xE1) -> bytes:
    step = 60_000
    starts = range(0, len(exif), step)
    return jpeg(b"".join(segment(marker, prefix + exif[at : at + step]) for at in starts))


def in_png(name: bytes, body: bytes) -> bytes:
    file = encoded(data.chelsea())
    check = struct.pack(">I", zlib.crc32(name + body))
    return file[:33] + struct.pack(">I", len(body)) + name + body + check + file[33:]


def profile(exif: bytes) -> bytes:
    """EXIF as ImageMagick writes it into the text of a PNG."""
    return b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(exif), exif.hex().encode())


TAGS = tags(3000, 100_000)
"""300 MB, once each tag has a copy of its bytes."""
LITTLE_TAGS = tags(400, 20_000)

MANY = {
    "tags in a JPEG": in_jpeg(TAGS),
    "tags in a JPEG, the other order": in_jpeg(tags(3000, 100_000, order=">")),
    "tags in a PNG": in_png(b"eXIf", TAGS),
    "tags in a PNG's text": in_png(b"tEXt", profile(TAGS)),
    "tags in a WebP": encoded(data.chelsea(), "WEBP", exif=TAGS),
    "tags of several pictures": in_jpeg(LITTLE_TAGS, b"MPF\0", 0xE2),
    "prefixes in a JPEG": in_jpeg(EXIF * 100_000),
    "prefixes in a PNG": in_png(b"eXIf", EXIF * 100_000),
    "prefixes in a WebP": encoded(data.chelsea(), "WEBP", exif=EXIF * 100_000),
    "comments": jpeg(segment(0xFE) * 200_000),
    "tables": jpeg(segment(0xDB, b"\0" + b"\1" * 64) * 20_000),
    "markers alone": jpeg(b"\xff\x01" * 200_000),
    "EXIF": jpeg(segment(0xE1, EXIF + bytes(90)) * 20_000),
    "Photoshop": jpeg(segment(0xED, PHOTOSHOP + bytes(90)) * 900),
    "fill": jpeg(b"\xff" * 4_000_000),
    "chunks": png(200_000),
    "blocks": gif(200_000),
    "junk": b"GIF89a" + bytes(4_000_000),
    "RLE": bmp(8_000_000, 1, b"\1\0\0\0\0\1"),
    "RLE deltas": bmp(1_000_000, 1, b"\0\2\xff\xff" * 10),
    "RLE runs": bmp(1, 4_000_000, b"\1\1" * 3_000_000),
}


@pytest.mark.parametrize("name", MANY)
def test_more_parts_than_a_picture_has_are_refused(name: str) -> None:
    file = MANY[name]
    with pytest.raises(ImageError, match="more than") as raised:
        decode(file, channels=3, limits=LIMITS)
    assert raised.value.reason == "IMAGE_UNSUPPORTED"
    assert raised.value.limit


FEW = {
    # Of XMP, whose extended form is as long as it likes, and of profiles.
    "segments": jpeg(segment(0xE1, XMP + bytes(4_000)) * (parts.MAX_SEGMENTS - 20)),
    "EXIF": jpeg(segment(0xE1, EXIF + bytes(4_000)) * parts.MAX_JOINED),
    "fill": jpeg(b"\xff" * parts.MAX_FILL_BYTES),
    "chunks": png(parts.MAX_CHUNKS - 20),
    "blocks": gif(parts.MAX_BLOCKS - 20),
}


@pytest.mark.parametrize("name", FEW)
def test_as_many_as_the_limit_are_decoded(name: str) -> None:
    found = np.asarray(decode(FEW[name], channels=3, limits=LIMITS).image).astype(int)
    assert np.abs(found - data.chelsea()).mean() < 8


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG's text", "WebP"])
def test_tags_that_lie_apart_keep_the_orientation(kind: str, order: str) -> None:
    exif = tags(40, 1000, order=order, apart=True)
    file = {
        "JPEG": lambda: in_jpeg(exif),
        "PNG": lambda: in_png(b"eXIf", exif),
        "PNG's text": lambda: in_png(b"tEXt", profile(exif)),
        "WebP": lambda: encoded(data.chelsea(), "WEBP", exif=exif),
    }[kind]()
    decoded = decode(file, channels=3, limits=LIMITS)
    assert (decoded.orientation.swap, decoded.warnings) == (True, ())


def test_a_webp_has_fewer_pixels_than_other_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    height, width, _ = data.chelsea().shape
    monkeypatch.setattr("foveate_runtime.imaging.decode.MAX_WEBP_PIXELS", width * height)
    decode(encoded(data.chelsea(), "WEBP"), channels=3, limits=LIMITS)
    monkeypatch.setattr("foveate_runtime.imaging.decode.MAX_WEBP_PIXELS", width * height - 1)
    decode(encoded(data.chelsea()), channels=3, limits=LIMITS)
    with pytest.raises(ImageError, match=f"WebP has .* the limit is {width * height - 1} pixels"):
        decode(encoded(data.chelsea(), "WEBP"), channels=3, limits=LIMITS)


def test_runs_within_the_limit_are_decoded() -> None:
    rows = (data.camera() // 64 * 64).astype(np.uint8)
    found = np.asarray(decode(bmp(*rows.shape, run_lengths(rows)), channels=1, limits=LIMITS).image)
    np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP"])
def test_a_file_that_ends_anywhere_is_left_for_the_decoder(kind: str) -> None:
    file = encoded(data.chelsea(), kind)
    for end in (*range(900), len(file)):
        parts.require_few(file[:end])


@pytest.mark.skipif(IMAGENET_DIR is None, reason="FOVEATE_IMAGENET_DIR names no photographs")
def test_photographs_have_a_twentieth_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_SEGMENTS", parts.MAX_SEGMENTS // 20)
    files = [*Path(str(IMAGENET_DIR)).rglob("*.JPEG"), *Path(str(IMAGENET_DIR)).rglob("*.jpg")]
    assert files
    for file in files:
        parts.require_few(file.read_bytes())
