"""Writes a report: the page, and beside it the sheets of its tiles where they are many."""

import os
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

from foveate_client.batch.evaluation import Evaluation
from foveate_client.batch.tables import write_bytes, write_text
from foveate_client.report import tiles
from foveate_client.report.entries import MOST, Entry, Fault
from foveate_client.report.page import Heading, Shown, render
from foveate_client.report.tiles import Tile

INLINE_TILES = 512
"""So many tiles, some 2 MB, lie in the page itself, which then is the only file."""

_SHEET = "sheet-"


@dataclass(frozen=True, slots=True)
class _Kept:
    """A tile in the writer's file."""

    class_id: int
    start: int
    length: int


class ReportWriter:
    """Gathers the pictures of a report, and writes the page to `path` at the end.

    Their tiles are kept in a temporary file, so that memory holds no picture. A context
    manager, which closes that file.
    """

    def __init__(self, path: Path, heading: Heading) -> None:
        self._path = path
        self._heading = heading
        self._pictures: list[tuple[Entry, tuple[_Kept, ...]]] = []
        self._faults: list[Fault] = []
        with ExitStack() as stack:
            self._waiting = stack.enter_context(
                tempfile.TemporaryFile(dir=path.parent, prefix=f".{path.name}.")
            )
            self._stack = stack.pop_all()

    @property
    def folder(self) -> Path:
        """Where the sheets lie that are too many for the page: report_files of report.html."""
        return self._path.with_name(f"{self._path.stem}_files")

    def add(self, entry: Entry, drawn: Sequence[Tile]) -> None:
        """Add a picture with its tiles: itself first, or none at all. Raises OSError."""
        kept = []
        for tile in drawn:
            kept.append(_Kept(tile.class_id, self._waiting.tell(), len(tile.file)))
            self._waiting.write(tile.file)
        self._pictures.append((entry, tuple(kept)))

    def fail(self, name: str, reason: str) -> None:
        """Add a picture that has no answer."""
        self._faults.append(Fault(name=name, reason=reason))

    def write(
        self, evaluation: Evaluation | None, figures: Mapping[str, str] | None = None
    ) -> list[Path]:
        """Write the page, and return the files and folders written. Raises OSError.

        The sheets come first, under names that no other content has, and the page replaces
        an older one at once: whoever opens it meanwhile sees one report or the other.
        """
        self._pictures.sort(key=lambda picture: picture[0].rank)
        listed = self._pictures[:MOST]
        places: list[tuple[int, int, int, Sequence[int]] | None] = []
        count = 0
        for _, kept in listed:
            if not kept:
                places.append(None)
                continue
            size = tiles.size_of(self._read(kept[0]))
            places.append((count, *size, [each.class_id for each in kept]))
            count += len(kept)
        files = tiles.sheets(self._read(each) for _, kept in listed for each in kept)
        inline = count <= INLINE_TILES
        addresses = list(map(_data_url, files)) if inline else list(self._beside(files))
        shown = Shown(
            entries=[entry for entry, _ in listed],
            left_out=len(self._pictures) - len(listed),
            faults=self._faults,
            sheets=addresses,
            places=places,
        )
        write_text(self._path, render(self._heading, evaluation, shown, figures))
        self._remove_old(set() if inline else {Path(each).name for each in addresses})
        return [self._path] if inline else [self._path, self.folder]

    def _read(self, kept: _Kept) -> bytes:
        self._waiting.seek(kept.start)
        return self._waiting.read(kept.length)

    def _beside(self, files: Iterator[bytes]) -> Iterator[str]:
        self.folder.mkdir(exist_ok=True)
        for file in files:
            name = f"{_SHEET}{sha256(file).hexdigest()[:16]}.jpg"
            if not (self.folder / name).exists():
                write_bytes(self.folder / name, file)
            yield f"{_escaped(self.folder.name)}/{name}"

    def _remove_old(self, wanted: set[str]) -> None:
        """Remove the sheets of an earlier report, and nothing else."""
        if not self.folder.is_dir():
            return
        for path in self.folder.glob(f"{_SHEET}*.jpg"):
            if path.name not in wanted:
                path.unlink()
        if not wanted and not os.listdir(self.folder):  # noqa: PTH208 - no path is needed
            self.folder.rmdir()

    def close(self) -> None:
        """Close the file of the tiles."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _data_url(file: bytes) -> str:
    return f"data:image/jpeg;base64,{b64encode(file).decode()}"


def _escaped(name: str) -> str:
    """Return a folder's name, which may be any bytes, as part of an address."""
    from urllib.parse import quote_from_bytes  # noqa: PLC0415 - an odd name's alone

    return quote_from_bytes(os.fsencode(name))
