"""What is hidden, how much of it, and that the same picture gives the same copies."""

import numpy as np
import pytest
from skimage import data

from foveate_runtime.imaging.masking import GRID, MOST_HIDDEN, hidden_by_cell, hidden_by_map

PICTURE = data.astronaut()[:90, :120]
EMPTY = np.broadcast_to(np.array([3, 1, 2], np.uint8), PICTURE.shape)
VALUES = np.random.default_rng(7).random((6, 8), np.float32)


def is_hidden(copies: np.ndarray) -> np.ndarray:
    """Return which pixels of the copies are hidden, bool [n, H, W]."""
    return (copies == EMPTY).all(axis=-1) & (PICTURE != EMPTY).any(axis=-1)


@pytest.mark.parametrize("pairs", [4, 16])
def test_by_map_and_by_chance_as_many_pixels_are_hidden(pairs: int) -> None:
    copies = hidden_by_map(PICTURE, EMPTY, VALUES, pairs)
    assert copies.shape == (2 * pairs, *PICTURE.shape)
    hidden = is_hidden(copies).mean(axis=(1, 2))
    shares = MOST_HIDDEN * np.arange(1, pairs + 1) / pairs
    np.testing.assert_allclose(hidden, np.tile(shares, 2), atol=1e-3)


def test_what_the_map_shows_goes_first_and_chance_knows_nothing_of_it() -> None:
    values = np.zeros((6, 8), np.float32)
    values[1:3, 2:5] = 1
    copies = is_hidden(hidden_by_map(PICTURE, EMPTY, values, 8))
    shown = np.zeros(PICTURE.shape[:2], bool)
    shown[15:45, 30:75] = True
    assert shown[copies[0]].all()
    by_chance = np.array([copy[shown].mean() for copy in copies[8:]])
    assert by_chance.mean() < copies[:8, shown].mean() / 2
    assert len({copy.tobytes() for copy in copies[8:]}) == 8


def test_a_map_of_one_cell_hides_what_chance_hides() -> None:
    copies = hidden_by_map(PICTURE, EMPTY, np.ones((1, 1), np.float32), 4)
    np.testing.assert_array_equal(copies[:4], copies[4:])


def test_the_same_picture_gives_the_same_copies() -> None:
    one, other = (hidden_by_map(PICTURE, EMPTY, VALUES, 4) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    different = hidden_by_map(np.ascontiguousarray(PICTURE[::-1]), EMPTY, VALUES, 4)
    assert not np.array_equal(one[4:], different[4:, ::-1])


@pytest.mark.parametrize("size", [(90, 120), (28, 28), (3, 7)])
def test_the_cells_cover_the_picture_once(size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), 200, np.uint8)
    copies = hidden_by_cell(picture, np.zeros_like(picture))
    assert len(copies) == GRID * GRID
    np.testing.assert_array_equal((copies[..., 0] == 0).sum(axis=0), 1)
