"""Small pictures of a report: drawn one by one, and shown as sheets of many."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from foveate_client import _drawing
from foveate_client._images import ImageInput, open_reduced
from foveate_client._results import View

SIDE = 112
"""Pixels of a tile's longer side."""

PICTURE = -1
"""In place of a class: the picture itself."""

COLUMNS = ROWS = 8
"""Of a sheet. A reader loads the sheets that are in view, so that small ones come soon."""

_OPACITY = 0.7
_KEPT_QUALITY, _SHOWN_QUALITY = 92, 82
"""Of JPEG. A tile is encoded twice, and the first time with little loss."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A small picture as JPEG: with the map of a class, or PICTURE without any."""

    class_id: int
    file: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Map:
    """A map of a class, float32 [h, w], for a tile."""

    class_id: int
    array: npt.NDArray[np.float32]


def draw(image: ImageInput, maps: Sequence[Map], view: View | None = None) -> tuple[Tile, ...]:
    """Return a tile of the picture and one of each map laid over it.

    `view` is the part of the picture that the maps cover; None means all of it. Raises
    ImageError where the picture cannot be read, and ValueError where it has another
    size than `view` says.
    """
    picture, size = open_reduced(image, 2 * SIDE)
    view = view or View(
        source_width=size[0],
        source_height=size[1],
        left=0,
        top=0,
        width=size[0],
        height=size[1],
    )
    if size != (view.source_width, view.source_height):
        raise ValueError(
            f"the maps belong to a picture of {view.source_width} x {view.source_height} pixels, "
            f"not {size[0]} x {size[1]}"
        )
    factor = SIDE / max(size)
    shown = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    # The pixels of a digit stay visible as such.
    how = Image.Resampling.NEAREST if factor > 2 else Image.Resampling.BICUBIC
    small = picture.resize(shown, how)
    across, down = shown[0] / size[0], shown[1] / size[1]
    left, top, width, height = view.box
    box = left * across, top * down, width * across, height * down
    overlays = (
        Tile(each.class_id, _jpeg(_drawing.overlay(small.copy(), each.array, box, _OPACITY)))
        for each in maps
    )
    return (Tile(PICTURE, _jpeg(small)), *overlays)


def _jpeg(image: Image.Image, quality: int = _KEPT_QUALITY) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def size_of(tile: bytes) -> tuple[int, int]:
    """Return the width and height of a tile's file."""
    with Image.open(io.BytesIO(tile)) as image:
        return image.size


def sheets(tiles: Iterable[bytes]) -> Iterator[bytes]:
    """Yield JPEG files of COLUMNS x ROWS tiles each, in their order, row by row.

    A tile lies in the upper left corner of its cell of SIDE x SIDE pixels.
    """
    sheet, place = _blank(), 0
    for tile in tiles:
        with Image.open(io.BytesIO(tile)) as image:
            row, column = divmod(place, COLUMNS)
            sheet.paste(image, (column * SIDE, row * SIDE))
        place += 1
        if place == COLUMNS * ROWS:
            yield _jpeg(sheet, _SHOWN_QUALITY)
            sheet, place = _blank(), 0
    if place:
        filled = -(-place // COLUMNS) * SIDE
        yield _jpeg(sheet.crop((0, 0, sheet.width, filled)), _SHOWN_QUALITY)


def _blank() -> Image.Image:
    return Image.new("RGB", (COLUMNS * SIDE, ROWS * SIDE), _drawing.PAPER)


def pack(tiles: Sequence[Tile]) -> bytes:
    """Return tiles as one string of bytes, which `unpack` reads."""
    parts = (b"%d %d\n%b" % (tile.class_id, len(tile.file), tile.file) for tile in tiles)
    return b"".join(parts)


def unpack(packed: bytes) -> tuple[Tile, ...]:
    """Return the tiles of `pack`."""
    found, start = [], 0
    while start < len(packed):
        end = packed.index(b"\n", start)
        class_id, length = map(int, packed[start:end].split())
        start = end + 1 + length
        found.append(Tile(class_id, packed[end + 1 : start]))
    return tuple(found)
