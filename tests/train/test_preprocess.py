"""How a picture becomes a network's input in training."""

import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from skimage import data

from foveate_runtime.bundle.manifest import InputSpec
from foveate_train.data.folder import FolderData, scan
from foveate_train.data.preprocess import preprocess, upright
from foveate_train.errors import DataError
from foveate_train.settings import Settings

GREY = InputSpec(
    height=64,
    width=256,
    channels=1,
    resize=64,
    interpolation="bilinear",
    mean=(0.0,),
    std=(1.0,),
)


def levels(image: Image.Image, spec: InputSpec) -> np.ndarray:
    return (255 * preprocess(image, spec)).round().to(torch.uint8).permute(1, 2, 0).numpy()


def reopened(image: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("resize", [64, 80, 256])
def test_a_picture_of_the_inputs_size_is_taken_as_it_is(fit, resize):
    spec = GREY.changed(fit=fit, resize=resize)
    picture = data.camera()[:64, :256]
    assert np.array_equal(levels(Image.fromarray(picture), spec)[..., 0], picture)


@pytest.mark.parametrize("size", [(64, 256), (128, 512), (300, 300), (40, 900), (500, 90)])
def test_a_crop_covers_an_input_that_is_not_square(size):
    white = Image.new("L", size[::-1], 255)
    assert (levels(white, GREY) == 255).all()


def test_padding_takes_the_colour_given_and_else_the_mean():
    spec = GREY.changed(fit="pad", mean=(0.4,), std=(0.5,))
    square = Image.new("L", (100, 100), 255)
    filled = preprocess(square, spec.changed(fill=(0.8,)))[0]
    assert torch.allclose(filled[:, :96], torch.tensor((204 / 255 - 0.4) / 0.5))
    assert torch.allclose(filled[:, 96:160], torch.tensor((1 - 0.4) / 0.5))
    assert torch.allclose(preprocess(square, spec)[0, :, 160:], torch.tensor(0.0), atol=1e-6)


def test_sixteen_bits_are_scaled_and_not_clipped():
    grey = data.camera()[:64, :256]
    sixteen = reopened(Image.fromarray(grey.astype(np.uint16) * 257))
    assert sixteen.mode.startswith("I")
    assert np.array_equal(levels(sixteen, GREY)[..., 0], grey)
    assert np.array_equal(np.asarray(upright(sixteen, 3))[..., 1], grey)


def test_floats_are_refused(tmp_path):
    floats = Image.fromarray(data.camera().astype(np.float32) / 255)
    with pytest.raises(DataError, match="floating-point values, whose range"):
        preprocess(floats, GREY)
    for name in "ab":
        (tmp_path / name).mkdir()
        floats.save(tmp_path / name / "picture.tiff")
    with pytest.raises(DataError, match=r"picture\.tiff: has floating-point values"):
        scan(tmp_path, "fail")


def test_a_picture_lies_as_its_exif_orientation_says():
    picture = Image.fromarray(data.camera()[:64, :256])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = reopened(picture.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert turned.size == (64, 256)
    assert np.array_equal(levels(turned, GREY), levels(picture, GREY))


def test_alpha_is_the_fourth_channel_and_else_dropped():
    picture = Image.fromarray(data.astronaut()[:32, :32]).convert("RGBA")
    picture.putalpha(77)
    spec = GREY.changed(height=32, width=32, resize=32, channels=4, mean=(0.0,) * 4, std=(1.0,) * 4)
    assert np.array_equal(levels(picture, spec), np.asarray(picture))
    opaque = picture.convert("RGB")
    assert (levels(opaque, spec)[..., 3] == 255).all()
    three = spec.changed(channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert np.array_equal(levels(picture, three), np.asarray(opaque))


def folder_data(folder, spec: InputSpec, **settings: object) -> FolderData:
    wide = np.zeros((64, 256), np.uint8)
    wide[:, ::32] = 255  # lines, one every 32 pixels
    for name in "ab":
        (folder / name).mkdir()
        Image.fromarray(wide).save(folder / name / "lines.png")
    return FolderData(scan(folder, "fail"), spec, Settings(**settings), workers=0)


def test_augmentation_keeps_the_aspect_ratio_of_an_input_that_is_not_square(tmp_path):
    loaded = folder_data(tmp_path, GREY, crop=0.98, flip=False)
    for epoch in range(8):
        batch = next(iter(loaded.epoch(0, epoch, 1)))
        lines = (batch.images[0, 0].mean(0) > 0.25).int().diff().clamp(min=0).sum()
        # Seven of the eight lines begin behind the left edge; a crop may lose some.
        assert lines >= 5


def test_a_policy_for_colours_is_refused_for_four_channels(tmp_path):
    spec = GREY.changed(channels=4, mean=(0.0,) * 4, std=(1.0,) * 4)
    with pytest.raises(DataError, match="--policy randaugment is for 1 or 3 channels"):
        folder_data(tmp_path, spec, policy="randaugment")
