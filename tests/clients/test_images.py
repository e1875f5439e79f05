import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from foveate_client import Client, ImageError, Prepared
from foveate_client._exceptions import TooMuchMemoryError
from foveate_client._images import (
    _require_few_coefficients,
    image_field,
    open_reduced,
    open_upright,
)

from ..encoding import encoded

ORIENTATION = 0x0112
ROTATED = 6


def sent(image) -> Image.Image:
    return Image.open(io.BytesIO(image_field(image)["encoded"]))


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def rotated(coffee, tmp_path):
    """A JPEG that lies on its side and says so."""
    path = tmp_path / "rotated.jpg"
    with Image.open(coffee) as image:
        exif = image.getexif()
        exif[ORIENTATION] = ROTATED
        image.save(path, exif=exif)
    return path


def test_a_file_above_what_any_message_may_have_is_not_read(tmp_path):
    huge = tmp_path / "huge.bmp"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match=rf"has {1 << 40} bytes; the limit is {256 << 20} bytes"):
        image_field(huge)


def test_what_has_no_end_is_not_read_for_ever(monkeypatch):
    monkeypatch.setattr("foveate_client._images.MAX_FILE_BYTES", 1000)
    with pytest.raises(ImageError, match="/dev/zero has no end within 1000 bytes, the limit"):
        image_field("/dev/zero")


def test_a_name_that_no_file_can_have_is_an_error_of_the_picture():
    with pytest.raises(ImageError, match=r"cannot read 'a\\x00b.jpg'"):
        image_field("a\0b.jpg")


def test_a_picture_too_large_to_be_drawn_upon_is_an_error_of_the_picture(coffee, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="cannot draw on the picture"):
        open_upright(coffee)


def test_a_file_travels_as_it_is(coffee):
    expected = {"encoded": coffee.read_bytes()}
    assert image_field(coffee) == expected
    assert image_field(str(coffee)) == expected
    assert image_field(coffee.read_bytes()) == expected


def test_an_array_of_any_size_travels_without_loss(coffee):
    colour = pixels(coffee)
    grey = colour[:, :, 1]
    assert np.array_equal(np.asarray(sent(colour)), colour)
    assert np.array_equal(np.asarray(sent(grey)), grey)
    assert np.array_equal(np.asarray(sent(grey[:, :, None])), grey)
    assert np.array_equal(np.asarray(sent(colour[::2, ::-1])), colour[::2, ::-1])
    transparent = np.dstack([colour, grey])
    assert sent(transparent).mode == "RGBA"
    assert np.array_equal(np.asarray(sent(transparent)), transparent)
    with pytest.raises(ImageError, match=r"3\] or .*4\], not .*, 2\]"):
        sent(colour[..., :2])


def test_a_pil_image_travels_without_loss(coffee):
    with Image.open(coffee) as image:
        assert np.array_equal(np.asarray(sent(image)), np.asarray(image))
        cmyk = image.convert("CMYK")
    assert sent(cmyk).mode == "RGB"


def test_sixteen_bits_travel_whole_in_either_order_of_bytes():
    values = np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)
    for order in ("<u2", ">u2"):
        mode = {"<u2": "I;16", ">u2": "I;16B"}[order]
        image = Image.frombytes(mode, (10, 6), values.astype(order).tobytes())
        assert np.array_equal(np.asarray(sent(image)), values)


def test_a_pil_image_travels_upright(rotated):
    with Image.open(rotated) as image:
        assert image.size == (600, 400)
        assert sent(image).size == (400, 600)


@pytest.mark.parametrize("kind", ["path", "bytes", "pil"])
def test_a_picture_is_drawn_upon_upright(rotated, kind):
    with Image.open(rotated) as image:
        source = {"path": rotated, "bytes": rotated.read_bytes(), "pil": image}[kind]
        upright = open_upright(source)
        expected = np.rot90(np.asarray(image), -1)
    assert np.array_equal(np.asarray(upright), expected)


@pytest.mark.parametrize("metadata", ["large profile", "wrong checksum"])
def test_a_png_is_drawn_upon_whatever_its_metadata_holds(coffee, metadata):
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATED
    with Image.open(coffee) as image:
        data = encoded(image, exif=exif)
        expected = np.rot90(np.asarray(image.convert("RGB")), -1)
    name, body = b"iCCP", b"profile\0\0" + zlib.compress(bytes(2 << 20))
    checksum = 1 if metadata == "wrong checksum" else zlib.crc32(name + body)
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)
    upright = open_upright(data[:33] + chunk + data[33:])
    assert np.array_equal(np.asarray(upright), expected)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_an_avif_is_drawn_upon_as_its_own_properties_turn_it(coffee):
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATED
    exif[0x010F] = "a camera"
    xmp = b'<rdf:Description tiff:Orientation="3"/>'
    with Image.open(coffee) as image:
        small = image.resize((60, 40))
    for given, turns in (({"exif": exif}, -1), ({"xmp": xmp}, 0)):
        file = encoded(small, "AVIF", quality=95, **given)
        expected = np.rot90(np.asarray(small), turns).astype(int)
        for data in (file, file.replace(b"MM\0*", b"XX\0*")):
            assert np.abs(np.asarray(open_upright(data)) - expected).mean() < 4


def test_what_the_server_mends_is_drawn_upon(coffee):
    with Image.open(coffee) as image:
        small = image.resize((60, 40))
    for kind, cut in (("JPEG", 2), ("PNG", 12), ("GIF", 2)):
        found = np.asarray(open_upright(encoded(small, kind)[:-cut])).astype(int)
        assert np.abs(found - np.asarray(small)).mean() < 10
    file = encoded(small, "WEBP", quality=95, save_all=True, append_images=[small.rotate(90)])
    for data in (file[:-30], b"RIFF\0\0\1\0" + file[8:]):
        found = np.asarray(open_upright(data)).astype(int)
        assert np.abs(found - np.asarray(small)).mean() < 10


def test_a_picture_of_malformed_exif_is_taken_as_it_lies(coffee):
    with Image.open(coffee) as image:
        file = encoded(image, exif=bytes(8))
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(open_upright(file)), expected)
    with Image.open(io.BytesIO(file)) as image:
        assert np.array_equal(np.asarray(sent(image)), expected)


def test_palettes_and_sixteen_bits_can_be_drawn_upon(coffee):
    colour = pixels(coffee)
    with Image.open(coffee) as image:
        palette = encoded(image.quantize(16), transparency=bytes([0] * 16))
    assert open_upright(palette).mode == "RGB"
    deep = encoded(colour[:, :, 0].astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(open_upright(deep))[:, :, 2], colour[:, :, 0])


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.zeros((8, 8, 3), np.float32), "uint8, not float32"),
        (np.zeros((8, 8, 5), np.uint8), r"not \[8, 8, 5\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"not \[2, 8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"not \[0, 8, 3\]"),
        (Image.new("F", (8, 8)), "mode F"),
        (Prepared(np.zeros((8, 8), np.uint8)), r"not uint8 \[8, 8\]"),
        ("no/such/file.jpg", "No such file"),
    ],
)
def test_what_cannot_be_sent_says_why(server, image, complaint):
    with Client(server.address) as client, pytest.raises(ImageError, match=complaint):
        client.classify(image)
    assert server.service.asked == []


def test_what_is_no_picture_is_a_type_error(server):
    with Client(server.address) as client, pytest.raises(TypeError, match="not int"):
        client.classify(7)


def test_what_cannot_be_drawn_upon_says_why():
    with pytest.raises(ImageError, match="cannot draw on the picture: Pillow, as it is installed"):
        open_upright(b"not a picture")


def sized(data, width, height):
    """Return a JPEG that states another size in its frame header."""
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:at] + height.to_bytes(2) + width.to_bytes(2) + data[at + 4 :]


@pytest.mark.parametrize(
    ("mode", "written", "mebibytes"),
    [
        ("RGB", {"progressive": True, "subsampling": 0}, 283),
        ("CMYK", {"progressive": True}, 378),
        ("RGB", {"progressive": True, "subsampling": 2}, None),
        ("L", {"progressive": True}, None),
        ("RGB", {"subsampling": 0}, None),
    ],
)
def test_a_jpeg_whose_coefficients_take_too_much_is_not_drawn_upon(mode, written, mebibytes):
    large = sized(encoded(Image.new(mode, (16, 16)), "JPEG", **written), 8000, 6200)
    with Image.open(io.BytesIO(large)) as opened:
        assert opened.size == (8000, 6200)
        if mebibytes is None:
            _require_few_coefficients(opened, large)
            return
    with pytest.raises(TooMuchMemoryError, match=f"takes {mebibytes} MiB to decode; the limit is"):
        open_reduced(large, 2048)


def test_a_baseline_jpeg_in_a_scan_a_component_counts_as_well():
    data = sized(encoded(Image.new("RGB", (16, 16)), "JPEG", subsampling=0), 8000, 6200)
    at = data.index(b"\xff\xda")
    alone = data[:at] + b"\xff\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    with pytest.raises(TooMuchMemoryError, match="takes 283 MiB"):
        open_reduced(alone, 2048)
