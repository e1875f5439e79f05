"""Maps drawn as pictures."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from foveate_client._drawing import turbo
from foveate_runtime.imaging import heatmap, jpeg


def test_turbo_runs_from_dark_blue_over_green_to_dark_red() -> None:
    assert heatmap.TURBO.shape == (256, 3)
    assert heatmap.TURBO.dtype == np.uint8
    blue, green, red = 2, 1, 0
    strongest = {50: blue, 128: green, 220: red}
    assert {index: heatmap.TURBO[index].argmax() for index in strongest} == strongest
    assert heatmap.TURBO[0].max() < 64
    assert heatmap.TURBO[255].max() < 192


def test_the_client_draws_with_the_same_colours() -> None:
    steps = np.linspace(0, 1, 256, dtype=np.float32)
    assert np.abs(turbo(steps).astype(int) - heatmap.TURBO).max() <= 1


def test_intensity_is_the_positive_part_over_the_maximum_enlarged_bilinearly() -> None:
    values = np.array([[-4.0, 0.0], [1.0, 4.0]], dtype=np.float32)
    found = heatmap.intensity(values, 7, 5)
    scaled = torch.tensor([[[[0.0, 0.0], [0.25, 1.0]]]])
    expected = torch.nn.functional.interpolate(scaled, (5, 7), mode="bilinear")[0, 0]
    assert found is not None
    np.testing.assert_allclose(found, 255 * expected.numpy(), atol=0.501)
    assert found.max() == 255


def test_intensity_is_largest_where_the_map_is_and_never_wraps() -> None:
    numbers = np.random.default_rng(0)
    for scale in (1e-38, 1e-3, 1.0, 1e20):
        values = (scale * numbers.normal(size=(7, 7))).astype(np.float32)
        found = heatmap.intensity(values, 70, 70)
        assert found is not None
        cells = found.reshape(7, 10, 7, 10).max(axis=(1, 3))
        assert cells.argmax() == values.argmax()
        assert cells.min() < 128


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_without_positive_evidence_there_is_no_intensity(value: float) -> None:
    values = np.full((7, 7), value, dtype=np.float32)
    assert heatmap.intensity(values, 224, 224) is None
    assert not heatmap.colourise(None, 9, 5).any()
    assert heatmap.colourise(None, 9, 5).shape == (5, 9, 3)


def test_the_overlay_mixes_by_its_opacity_times_the_evidence() -> None:
    image = data.chelsea()[:200, :300].copy()
    canvas = heatmap.enlarge(image, 300, 200)
    intensity = np.linspace(0, 255, 200 * 300).astype(np.uint8).reshape(200, 300)
    colours = heatmap.colourise(intensity, 300, 200)
    assert np.array_equal(heatmap.overlay(canvas, intensity, 0.0)[..., :3], image)
    for opacity in (0.5, 0.7, 1.0):
        share = opacity * intensity[..., None] / 255
        expected = (1 - share) * image + share * colours
        mixed = heatmap.overlay(canvas, intensity, opacity)[..., :3]
        assert np.abs(mixed - expected).max() <= 2
    assert np.array_equal(heatmap.overlay(canvas, None, 0.5), canvas)


@pytest.mark.parametrize("value", [0, 255])
def test_the_overlay_does_not_overflow(value: int) -> None:
    canvas = heatmap.enlarge(np.full((16, 16, 3), value, dtype=np.uint8), 16, 16)
    intensity = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colours = heatmap.colourise(intensity, 16, 16)
    for opacity in np.linspace(0, 1, 101):
        share = opacity * intensity[..., None] / 255
        expected = (1 - share) * value + share * colours
        mixed = heatmap.overlay(canvas, intensity, float(opacity))[..., :3]
        assert np.abs(mixed - expected).max() <= 2


@pytest.mark.parametrize("channels", [2, 4, 48])
def test_of_other_channels_what_can_be_shown_is_shown(channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (6, 9, channels), dtype=np.uint8)
    shown = heatmap.enlarge(values, 9, 6)
    expected = values[..., :3] if channels > 2 else np.repeat(values[..., :1], 3, axis=2)
    assert np.array_equal(shown[..., :3], expected)


def test_enlarge_gives_rgb_of_the_size_asked_for() -> None:
    grey = data.chelsea()[:28, :28, :1].copy()
    assert np.array_equal(heatmap.enlarge(grey, 28, 28)[..., :3], np.repeat(grey, 3, axis=2))
    assert heatmap.enlarge(grey, 56, 84).shape == (84, 56, 4)


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
@pytest.mark.parametrize("library", ["simplejpeg", "Pillow"])
def test_a_fourth_channel_is_not_encoded(
    monkeypatch: pytest.MonkeyPatch, encoding: heatmap.Encoding, library: str
) -> None:
    if library == "Pillow":
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    image = data.chelsea()
    padded = np.pad(image, ((0, 0), (0, 0), (0, 1)), constant_values=77)
    assert heatmap.encode(padded, encoding) == heatmap.encode(image, encoding)


@pytest.mark.parametrize(("encoding", "kind", "loss"), [("png", "PNG", 0), ("jpeg", "JPEG", 4)])
def test_pictures_are_encoded(encoding: heatmap.Encoding, kind: str, loss: float) -> None:
    image = data.chelsea()
    decoded = Image.open(io.BytesIO(heatmap.encode(image, encoding)))
    assert decoded.format == kind
    assert np.abs(np.asarray(decoded).astype(int) - image).mean() <= loss


def test_a_jpeg_is_as_near_to_the_picture_by_either_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = data.chelsea()

    def error() -> tuple[float, int]:
        file = heatmap.encode(pixels, "jpeg")
        with Image.open(io.BytesIO(file)) as image:
            return float(np.abs(np.asarray(image).astype(int) - pixels).mean()), len(file)

    quick, quick_bytes = error()
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    slow, slow_bytes = error()
    assert quick == pytest.approx(slow, rel=0.05)
    assert quick_bytes == pytest.approx(slow_bytes, rel=0.05)
