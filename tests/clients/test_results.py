import numpy as np
import pytest
from PIL import Image

from foveate_client import Client, FeatureMap, Heatmap, View, _drawing

WIDE = View(source_width=600, source_height=400, left=125, top=25, width=350, height=350)


def heatmap(values: np.ndarray, view: View = WIDE) -> Heatmap:
    return Heatmap(
        class_id=1,
        label="tiger cat",
        method="cam",
        layer="features.7",
        array=values.astype(np.float32),
        minimum=float(values.min()),
        maximum=float(values.max()),
        view=view,
    )


def one_cell(row: int, column: int) -> np.ndarray:
    values = np.zeros((7, 7))
    values[row, column] = 5
    return values


def change(original: Image.Image, drawn: Image.Image) -> np.ndarray:
    return np.abs(np.asarray(drawn, float) - np.asarray(original, float)).sum(axis=2)


@pytest.fixture
def original(coffee) -> Image.Image:
    with Image.open(coffee) as image:
        return image.convert("RGB")


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 3), (1, 5), (6, 2)])
def test_an_overlay_lies_where_the_classifier_looked(original, row, column):
    cam = heatmap(one_cell(row, column))
    changed = change(original, cam.overlay(original)) > 0
    rows, columns = np.nonzero(changed)
    # A cell is 50 pixels, and bilinear interpolation reaches to its neighbours' centres.
    assert rows.min() >= 25 + 50 * row - 25
    assert rows.max() < 25 + 50 * (row + 1) + 25
    assert columns.min() >= 125 + 50 * column - 25
    assert columns.max() < 125 + 50 * (column + 1) + 25
    x, y = cam.peak
    assert (x, y) == (125 + 50 * column + 25, 25 + 50 * row + 25)
    assert changed[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2].all()


def test_an_overlay_leaves_what_was_not_seen(original):
    drawn = heatmap(np.ones((7, 7))).overlay(original)
    changed = change(original, drawn) > 0
    assert changed[25:375, 125:475].mean() > 0.99
    changed[25:375, 125:475] = False
    assert not changed.any()


def test_the_largest_value_has_the_whole_opacity(original):
    drawn = heatmap(np.full((7, 7), 2.0)).overlay(original, opacity=1)
    dark_red = _drawing.turbo(np.float32(1))
    assert (np.asarray(drawn)[25:375, 125:475] == dark_red).all()


@pytest.mark.parametrize("values", [np.zeros((7, 7)), -one_cell(2, 2) - 1])
def test_no_evidence_shows_no_colour(original, values):
    cam = heatmap(values)
    assert not cam.has_evidence
    assert change(original, cam.overlay(original)).max() == 0


def test_a_view_may_end_between_pixels_and_at_the_edge(original):
    edge = View(source_width=600, source_height=400, left=0, top=0.4, width=600, height=399.6)
    drawn = heatmap(np.ones((7, 7)), edge).overlay(original)
    assert drawn.size == (600, 400)
    assert change(original, drawn)[-1, -1] > 0


def test_an_overlay_of_a_padded_picture_lies_on_the_picture(original):
    # 600 x 400 in a square input: a row of cells above and below it is the border's.
    padded = View(source_width=600, source_height=400, left=0, top=-100, width=600, height=600)
    cam = heatmap(one_cell(3, 1), padded)
    assert cam.peak == (600 / 7 * 1.5, 200)
    changed = change(original, cam.overlay(original)) > 0
    rows, columns = np.nonzero(changed)
    assert abs(rows.mean() - 200) < 2
    assert abs(columns.mean() - 600 / 7 * 1.5) < 1
    assert rows.min() >= 200 - 600 / 7
    hidden = heatmap(one_cell(0, 1), padded)  # its centre lies above the picture
    assert hidden.peak[1] < 0
    rows, _ = np.nonzero(change(original, hidden.overlay(original)) > 0)
    assert rows.max() < 600 / 7 * 1.5 - 100


def test_an_overlay_of_a_squashed_picture_covers_all_of_it(original):
    whole = View(source_width=600, source_height=400, left=0, top=0, width=600, height=400)
    cam = heatmap(one_cell(6, 0), whole)
    assert cam.peak == (600 / 7 / 2, 400 - 400 / 7 / 2)
    changed = change(original, cam.overlay(original)) > 0
    assert changed[399, 0]
    assert not changed[: 400 - 2 * 400 // 7].any()


def test_an_overlay_needs_the_whole_picture(original):
    with pytest.raises(ValueError, match="600 x 400 pixels, not 300 x 200"):
        heatmap(np.ones((7, 7))).overlay(original.resize((300, 200)))


def test_interpolation_agrees_with_pillow(server, coffee):
    with Client(server.address) as client:
        features = client.classify(coffee, feature_maps=["features.3"]).feature_maps[0]
    for plane in features.array:
        expected = Image.fromarray(plane).resize((331, 207), Image.Resampling.BILINEAR)
        got = _drawing.resample(plane, (331, 207), (0, 0, 331, 207))
        np.testing.assert_allclose(got, np.asarray(expected), rtol=1e-5, atol=1e-3)


def test_turbo_has_its_published_colours():
    colours = _drawing.turbo(np.array([0, 0.5, 1], np.float32)).astype(int)
    # What D3's interpolateTurbo draws, which rounds the same polynomial a little differently.
    np.testing.assert_allclose(colours, [(35, 23, 27), (149, 251, 80), (144, 12, 0)], atol=1)


def test_viridis_has_its_published_colours():
    colours = _drawing.viridis(np.array([0, 0.5, 1], np.float32))
    assert colours.tolist() == [[68, 1, 84], [33, 144, 141], [253, 231, 37]]


def test_a_heatmap_is_saved_as_a_picture_or_as_values(tmp_path):
    cam = heatmap(one_cell(1, 5))
    cam.save(tmp_path / "map.npy")
    cam.save(tmp_path / "map.png")
    assert np.array_equal(np.load(tmp_path / "map.npy"), cam.array)
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.size == (350, 350)
        colours = np.asarray(picture).astype(int)
    assert np.abs(colours[75, 275] - _drawing.turbo(np.float32(1))).max() <= 6
    assert (colours[300, 20] == _drawing.turbo(np.float32(0))).all()


def features(channels: int, height: int, width: int) -> FeatureMap:
    values = np.arange(channels * height * width, dtype=np.float32)
    array = np.sin(values).reshape(channels, height, width)
    return FeatureMap(
        layer="features.3",
        channels=tuple(range(100, 100 + channels)),
        array=array,
        minimum=float(array.min()),
        maximum=float(array.max()),
    )


def tiles(sheet: Image.Image, width: int, height: int) -> list[tuple[int, int]]:
    """Return the corners of the tiles: where colour begins below and right of paper."""
    ink = np.asarray(sheet.convert("HSV"))[:, :, 1] > 60
    corners = ink.copy()
    corners[1:] &= ~ink[:-1]
    corners[:, 1:] &= ~ink[:, :-1]
    return [
        (int(y), int(x))
        for y, x in zip(*np.nonzero(corners), strict=True)
        if ink[y : y + height, x : x + width].all()
    ]


@pytest.mark.parametrize(
    ("channels", "height", "width", "scale"),
    [(1, 7, 7, 37), (5, 28, 28, 10), (16, 12, 12, 14), (100, 6, 9, 8)],
)
def test_a_contact_sheet_shows_every_channel_once(channels, height, width, scale):
    wanted = features(channels, height, width)
    sheet = wanted.contact_sheet()
    found = tiles(sheet, width * scale, height * scale)
    assert len(found) == channels
    for (y, x), plane in zip(found, wanted.array, strict=True):
        tile = np.asarray(sheet)[y : y + height * scale : scale, x : x + width * scale : scale]
        shares = (plane - plane.min()) / (plane.max() - plane.min())
        assert np.array_equal(tile, _drawing.viridis(shares))
        label = np.asarray(sheet)[y + height * scale + 3 : y + height * scale + 16, x : x + 24]
        assert label.min() < 200
    assert (np.asarray(sheet)[:, :20] == 255).all()


def test_a_channel_of_one_value_is_grey():
    wanted = features(2, 7, 7)
    wanted.array[1] = 3
    sheet = np.asarray(wanted.contact_sheet())
    assert (sheet == 224).all(axis=2).sum() >= (7 * 37) ** 2


def test_a_feature_map_is_saved_as_a_sheet_or_as_values(tmp_path):
    wanted = features(3, 7, 7)
    wanted.save(tmp_path / "map.npy")
    wanted.save(tmp_path / "map.png")
    assert np.array_equal(np.load(tmp_path / "map.npy"), wanted.array)
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.size == wanted.contact_sheet().size
