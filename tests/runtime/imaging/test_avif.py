"""An AVIF is decoded as viewers show it, and what decoding takes is known before it begins."""

import io
import struct

import numpy as np
import pytest
from PIL import Image
from skimage import data

from foveate_runtime.imaging import avif
from foveate_runtime.imaging.decode import UPRIGHT, ImageError, ImageLimits, decode
from foveate_runtime.imaging.parts import TooManyPartsError

if not avif.SUPPORTED:
    pytest.skip("this Pillow reads no AVIF", allow_module_level=True)

from PIL import AvifImagePlugin

from ...encoding import encoded

LIMITS = ImageLimits()
WIDTH, HEIGHT = 90, 60
COLOUR = np.asarray(Image.fromarray(data.chelsea()).resize((WIDTH, HEIGHT)))


def written(picture: Image.Image | np.ndarray = COLOUR, **options: object) -> bytes:
    return encoded(picture, "AVIF", **{"quality": 90, **options})


def pixels(file: bytes, channels: int = 3) -> np.ndarray:
    return np.asarray(decode(file, channels=channels, limits=LIMITS).image).astype(int)


def oriented(orientation: int, **others: object) -> bytes:
    """The picture, whose `irot` and `imir` say what EXIF would."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return written(exif=exif, **others)


def replaced(file: bytes, name: bytes, offset: int, value: bytes) -> bytes:
    """Write `value` so many bytes behind the first box of that name begins its content."""
    at = file.index(name) + len(name) + offset
    return file[:at] + value + file[at + len(value) :]


def units(file: bytes) -> bytes:
    """Return the coded data of a file with one picture."""
    at = file.index(b"mdat") + 4
    return file[at:]


def box(name: bytes, body: bytes, *, full: bool = False) -> bytes:
    body = bytes(4) * full + body
    return struct.pack(">I4s", 8 + len(body), name) + body


def stored(items: list[bytes], *, size: tuple[int, int], repeats: int = 1, shown: int = 1) -> bytes:
    """A file of coded items, each of which holds its data `repeats` times by as many extents."""
    entries = b"".join(
        box(b"infe", b"\2\0\0\0" + struct.pack(">HH4s", number, 0, b"av01") + b"\0")
        for number in range(1, len(items) + 1)
    )
    properties = box(b"ipco", box(b"ispe", struct.pack(">II", *size), full=True))
    claims = b"".join(struct.pack(">HBB", number + 1, 1, 1) for number in range(len(items)))
    properties += box(b"ipma", struct.pack(">I", len(items)) + claims, full=True)

    def places(start: int) -> bytes:
        found = struct.pack(">BBH", 0x44, 0, len(items))
        for number, item in enumerate(items, 1):
            found += struct.pack(">HHH", number, 0, repeats)
            found += struct.pack(">II", start, len(item)) * repeats
            start += len(item)
        return box(b"iloc", found, full=True)

    def head(start: int) -> bytes:
        kinds = box(b"iinf", struct.pack(">H", len(items)) + entries, full=True)
        handler = box(b"hdlr", bytes(4) + b"pict" + bytes(13), full=True)
        primary = box(b"pitm", struct.pack(">H", shown), full=True)
        meta = handler + primary + places(start) + kinds + box(b"iprp", properties)
        return box(b"ftyp", b"avif\0\0\0\0avifmif1") + box(b"meta", meta, full=True)

    before = len(head(0)) + 8
    return head(before) + box(b"mdat", b"".join(items))


def test_colours_transparency_and_grey_are_read() -> None:
    assert np.abs(pixels(written()) - COLOUR).mean() < 4
    half = Image.fromarray(COLOUR)
    half.putalpha(77)
    found = pixels(written(half), 4)
    assert np.abs(found[..., :3] - COLOUR).mean() < 4
    assert np.abs(found[..., 3] - 77).max() < 3
    grey = Image.fromarray(COLOUR).convert("L")
    assert np.abs(pixels(written(grey), 1) - np.asarray(grey)).mean() < 4


def test_of_a_sequence_the_still_picture_is_taken() -> None:
    black = Image.new("RGB", (WIDTH, HEIGHT))
    file = written(save_all=True, append_images=[black, black])
    assert file[8:12] == b"avis"
    assert avif.look(file) == avif.Contents(
        sizes=((WIDTH, HEIGHT),), coded=WIDTH * HEIGHT, moves=True
    )
    assert np.abs(pixels(file) - COLOUR).mean() < 4
    meta = file.index(b"meta")
    alone = file[:meta] + b"free" + file[meta + 4 :]
    with pytest.raises(ImageError, match="sequence without a still picture; send one of its"):
        decode(alone, channels=3, limits=LIMITS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_turned_by_its_own_properties(orientation: int) -> None:
    found = decode(oriented(orientation), channels=3, limits=LIMITS).orientation
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = encoded(COLOUR, "JPEG", exif=exif)
    assert found == decode(jpeg, channels=3, limits=LIMITS).orientation


def test_metadata_neither_turns_it_nor_stands_in_the_way() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    file = written(exif=exif, xmp=b'<rdf:Description tiff:Orientation="6"/>')
    malformed = file.replace(b"MM\0*", b"XX\0*")
    assert malformed != file
    with pytest.raises(ValueError, match="Exif"):
        Image.open(io.BytesIO(malformed))
    for each in (file, malformed):
        decoded = decode(each, channels=3, limits=LIMITS)
        assert (decoded.orientation, decoded.warnings) == (UPRIGHT, ())
        assert np.abs(np.asarray(decoded.image).astype(int) - COLOUR).mean() < 4


@pytest.mark.parametrize("side", [5_000, 60_000])
def test_a_size_that_is_claimed_is_refused_by_its_box(side: int) -> None:
    file = replaced(written(), b"ispe", 4, struct.pack(">II", side, side))
    with pytest.raises(ImageError, match=f"AVIF has {side} x {side} = .* 16777216") as raised:
        decode(file, channels=3, limits=LIMITS)
    assert raised.value.reason == "IMAGE_TOO_LARGE"


def test_frames_that_are_larger_than_claimed_are_refused_undecoded() -> None:
    file = replaced(written(), b"ispe", 4, struct.pack(">II", 9, 6))
    few = ImageLimits(max_pixels=9 * 6)
    with pytest.raises(ImageError, match="frames of the AVIF have 5400 pixels together") as raised:
        decode(file, channels=3, limits=few)
    assert raised.value.limit == 2 * 9 * 6
    # Within the limits they are scaled to what the file claims, as viewers do.
    assert decode(file, channels=3, limits=LIMITS).size == (9, 6)


def test_a_picture_of_our_own_boxes_is_read() -> None:
    # Without `av1C` no reader decodes it; what it takes is told all the same.
    file = stored([units(written())], size=(WIDTH, HEIGHT))
    assert avif.look(file).coded == WIDTH * HEIGHT


def test_every_frame_of_an_item_counts() -> None:
    whole = units(written())
    file = stored([whole * 50], size=(WIDTH, HEIGHT))
    assert avif.look(file).coded == 50 * WIDTH * HEIGHT
    file = stored([whole], size=(WIDTH, HEIGHT), repeats=4)
    assert avif.look(file).coded == 4 * WIDTH * HEIGHT


def test_items_of_small_frames_count_by_what_they_are_scaled_to() -> None:
    file = stored([units(written())] * 3, size=(1000, 1000))
    assert avif.look(file).coded == 3_000_000


def bits(*fields: tuple[int, int]) -> bytes:
    """Write numbers of so many bits each, and fill the last byte."""
    text = "".join(f"{value:0{count}b}" for value, count in fields)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def unit(kind: int, body: bytes) -> bytes:
    return bytes((kind << 3 | 2, len(body))) + body


SEQUENCE = (
    *((0, 3), (0, 1), (0, 1)),  # profile, still picture, reduced header
    *((0, 1), (0, 1), (0, 5), (0, 12), (0, 5)),  # timing, delays, one operating point
    *((9, 4), (8, 4), (799, 10), (299, 9)),  # the largest frame: 800 x 300, by 10 and 9 bits
    *((0, 1), (0, 3), (0, 4), (0, 1), (1, 1), (1, 1)),  # frame numbers, tools
)


@pytest.mark.parametrize(
    ("frame", "coded"),
    [
        pytest.param(((0, 1), (0, 2), (1, 1), (0, 1), (0, 1), (0, 1)), 800 * 300, id="key"),
        pytest.param(
            ((0, 1), (0, 2), (1, 1), (0, 1), (0, 1), (1, 1)), 1024 * 512, id="of its own size"
        ),
        pytest.param(((0, 1), (3, 2), (1, 1), (0, 8)), 1024 * 512, id="a switch"),
        pytest.param(
            ((0, 1), (1, 2), (0, 1), (0, 1), (0, 1), (0, 1), (1, 1), (0, 1), (0, 1)),
            800 * 300,
            id="hidden",
        ),
        pytest.param(((1, 1), (0, 7)), 0, id="shown once more"),
    ],
)
def test_a_frame_has_the_size_that_its_headers_say(
    frame: tuple[tuple[int, int], ...], coded: int
) -> None:
    content = unit(1, bits(*SEQUENCE)) + unit(6, bits(*frame) + bytes(8))
    assert avif.look(stored([content], size=(1, 1))).coded == max(1, coded)


def test_more_parts_than_a_picture_has_are_refused() -> None:
    whole = units(written())
    many = (
        stored([b""] * 30_000, size=(1, 1)),
        stored([whole], size=(1, 1), repeats=20_000),
        stored([b"\x7a\0" * 20_000], size=(1, 1)),
        # Items of 65,535 extents that take no bytes.
        box(b"ftyp", b"avif\0\0\0\0")
        + box(
            b"meta",
            box(
                b"iloc",
                bytes(2) + struct.pack(">H", 9) + struct.pack(">HHH", 1, 0, 65_535) * 9,
                full=True,
            ),
            full=True,
        ),
        box(b"ftyp", b"avif\0\0\0\0") + box(b"free", b"") * 20_000,
    )
    for file in many:
        with pytest.raises(TooManyPartsError):
            avif.look(file)
        with pytest.raises(ImageError, match="which is the limit"):
            decode(file, channels=3, limits=LIMITS)


def test_items_may_not_share_bytes_without_end() -> None:
    large = units(written()) + bytes(100_000)
    with pytest.raises(TooManyPartsError, match="bytes of items"):
        avif.look(stored([large], size=(1, 1), repeats=9))


def test_a_file_that_ends_anywhere_is_a_picture_or_refused() -> None:
    file = written()
    for end in (*range(12, 400, 7), len(file) - 1):
        with pytest.raises(ImageError) as raised:
            decode(file[:end], channels=3, limits=LIMITS)
        assert raised.value.reason == "IMAGE_CORRUPT", end


def test_a_picture_takes_one_thread_to_decode() -> None:
    assert AvifImagePlugin._get_default_max_threads() == 1


def test_without_the_decoder_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avif, "SUPPORTED", False)
    with pytest.raises(
        ImageError, match=r"AVIF, which is read with Pillow 11\.3 or later"
    ) as raised:
        decode(written(), channels=3, limits=LIMITS)
    assert raised.value.reason == "IMAGE_UNSUPPORTED"
