"""The classifier's input is that of torchvision's evaluation transform."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image
from skimage import data
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from foveate_runtime.bundle.manifest import InputSpec
from foveate_runtime.imaging import jpeg, resample
from foveate_runtime.imaging.decode import ImageLimits
from foveate_runtime.imaging.transform import prepare

from ...encoding import encoded

LIMITS = ImageLimits()


@pytest.fixture(autouse=True, params=["with the extra images", "with Pillow alone"])
def libraries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "with Pillow alone":
        monkeypatch.setattr(jpeg, "simplejpeg", None)
        monkeypatch.setattr(resample, "cykooz_resizer", None)
    else:
        assert jpeg.simplejpeg is not None
        assert resample.cykooz_resizer is not None


def spec(
    height: int = 224,
    width: int = 224,
    resize: int = 256,
    interpolation: str = "bicubic",
    channels: int = 3,
    **fields: object,
) -> InputSpec:
    return InputSpec(
        height=height,
        width=width,
        channels=channels,
        resize=resize,
        interpolation=interpolation,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        **fields,
    )


PHOTOGRAPHS = {
    "chelsea": data.chelsea(),
    "astronaut": data.astronaut(),
    "coffee, upright": data.coffee().swapaxes(0, 1),
    "rocket": data.rocket(),
    "chelsea, tiny": data.chelsea()[::5, ::5],
    "a strip": data.astronaut()[:, 250:261],
}


def torchvision_input(image: Image.Image, wanted: InputSpec) -> np.ndarray:
    transform = Compose(
        [
            Resize(wanted.resize, InterpolationMode(wanted.interpolation), antialias=True),
            CenterCrop((wanted.height, wanted.width)),
        ]
    )
    return np.asarray(transform(image))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_agrees_with_torchvision(name: str, interpolation: str) -> None:
    image = Image.fromarray(np.ascontiguousarray(PHOTOGRAPHS[name]))
    wanted = spec(interpolation=interpolation)
    found, _ = prepare(encoded(image), wanted, LIMITS)
    difference = np.abs(found.astype(int) - torchvision_input(image, wanted))
    assert found.shape == (224, 224, 3)
    # Both libraries round between rows and columns, and Pillow chooses their order by the size.
    assert difference.mean() < 0.3


@pytest.mark.parametrize(("height", "width", "resize"), [(192, 224, 224), (299, 299, 299)])
def test_agrees_with_torchvision_on_other_sizes(height: int, width: int, resize: int) -> None:
    image = Image.fromarray(data.coffee())
    wanted = spec(height=height, width=width, resize=resize)
    found, _ = prepare(encoded(image), wanted, LIMITS)
    difference = np.abs(found.astype(int) - torchvision_input(image, wanted))
    assert difference.mean() < 0.3


def test_a_large_jpeg_agrees_with_torchvision_although_it_is_decoded_smaller() -> None:
    large = Image.fromarray(data.astronaut()).resize((3000, 3000), Image.Resampling.BICUBIC)
    file = encoded(large, "JPEG", quality=92)
    wanted = spec()
    found, view = prepare(file, wanted, LIMITS)
    expected = torchvision_input(Image.open(io.BytesIO(file)), wanted)
    assert np.abs(found.astype(int) - expected).mean() < 1.0
    assert (view.source_width, view.source_height) == (3000, 3000)
    assert view.left == view.top == 16 * 3000 / 256
    assert view.width == view.height == 224 * 3000 / 256


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "size"), [("JPEG", 1), ("JPEG", 4), ("PNG", 1)])
def test_exif_orientation_is_honoured(orientation: int, kind: str, size: int) -> None:
    upright = Image.fromarray(data.chelsea())
    upright = upright.resize((upright.width * size, upright.height * size))
    stored = upright
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    if undo is not None:
        stored = upright.transpose(undo)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation

    # Without subsampling, so that the JPEG's colours do not depend on the turn.
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    plain, plain_view = prepare(encoded(upright, kind, **options), spec(), LIMITS)
    found, view = prepare(encoded(stored, kind, exif=exif, **options), spec(), LIMITS)

    assert view == plain_view
    difference = np.abs(found.astype(int) - plain).mean()
    assert difference < (2.0 if kind == "JPEG" else 0.3)


def test_grey_pictures_have_one_channel() -> None:
    found, _ = prepare(encoded(data.chelsea()), spec(28, 28, 28, channels=1), LIMITS)
    assert found.shape == (28, 28, 1)
    assert found.dtype == np.uint8


def test_a_picture_of_the_inputs_size_is_left_as_it_is() -> None:
    digit = data.chelsea()[:28, :28, 0].copy()
    found, view = prepare(
        encoded(digit),
        spec(28, 28, 28, interpolation="bilinear", channels=1),
        LIMITS,
    )
    assert np.array_equal(found[..., 0], digit)
    assert (view.left, view.top, view.width, view.height) == (0, 0, 28, 28)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_picture_of_the_inputs_size_is_taken_as_it_is_whatever_resize_says(
    fit: str, orientation: int
) -> None:
    cat = data.chelsea()[:64, :256]
    stored = Image.fromarray(np.rot90(cat) if orientation == 6 else cat)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    found, view = prepare(encoded(stored, exif=exif), spec(64, 256, 80, fit=fit), LIMITS)
    assert np.array_equal(found, cat)
    assert (view.left, view.top, view.width, view.height) == (0, 0, 256, 64)


@pytest.mark.parametrize("size", [(64, 256), (128, 512), (300, 300), (40, 900), (500, 90)])
def test_a_crop_covers_an_input_that_is_not_square(size: tuple[int, int]) -> None:
    height, width = size
    found, view = prepare(
        encoded(Image.new("RGB", (width, height), "white")), spec(64, 256, 64), LIMITS
    )
    assert (found == 255).all()
    assert view.width == pytest.approx(min(width, 4 * height), abs=1)
    assert view.height == pytest.approx(min(height, width / 4), abs=1)


def test_a_picture_is_squashed_whole() -> None:
    halves = np.zeros((50, 400, 3), np.uint8)
    halves[:, 200:] = 255
    found, view = prepare(encoded(halves), spec(32, 32, 32, fit="squash"), LIMITS)
    assert (found[:, :14] == 0).all()
    assert (found[:, 18:] == 255).all()
    assert (view.left, view.top, view.width, view.height) == (0, 0, 400, 50)


def test_a_picture_is_padded_to_the_inputs_shape() -> None:
    white = encoded(Image.new("RGB", (400, 100), "white"))
    found, view = prepare(white, spec(32, 32, 32, fit="pad"), LIMITS)
    assert (found[12:20] == 255).all()
    assert (found[:12] == 128).all()  # the mean
    assert (found[20:] == 128).all()
    assert (view.left, view.top, view.width, view.height) == (0, -150, 400, 400)
    found, _ = prepare(white, spec(32, 32, 32, fit="pad", fill=(1, 0, 0.5)), LIMITS)
    assert (found[:12] == (255, 0, 128)).all()


def test_a_large_jpeg_is_not_decoded_smaller_than_a_wide_input() -> None:
    large = Image.fromarray(data.astronaut()).resize((2048, 2048), Image.Resampling.BICUBIC)
    file = encoded(large, "JPEG", quality=92)
    for fit in ("crop", "squash"):
        wanted = spec(16, 512, 16, fit=fit)
        small, _ = prepare(file, wanted, LIMITS)
        whole, _ = prepare(encoded(Image.open(io.BytesIO(file))), wanted, LIMITS)
        assert np.abs(small.astype(int) - whole).mean() < 1.5


def test_alpha_is_resized_as_pillow_does() -> None:
    picture = Image.fromarray(data.astronaut()).convert("RGBA")
    picture.putalpha(Image.fromarray(data.astronaut()[..., 0]))
    found, _ = prepare(encoded(picture), spec(64, 64, 64, channels=4), LIMITS)
    expected = np.asarray(picture.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(found - expected)[..., 3].mean() < 0.5
    # Colours count for nothing where alpha hides them, and are rounded coarsely there.
    opaque = expected[..., 3] > 64
    assert np.abs(found - expected)[opaque].mean() < 1


def test_one_pixel_is_a_picture() -> None:
    one = Image.new("RGB", (1, 1), (10, 200, 30))
    found, view = prepare(encoded(one), spec(), LIMITS)
    assert (found == (10, 200, 30)).all()
    assert 0 < view.width < 1
