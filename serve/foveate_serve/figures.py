"""Numbers by name and labels, in memory or in files that outlive the process."""

import json
import mmap
import os
import time
from array import array
from collections.abc import Iterator, MutableSequence, Sequence
from pathlib import Path
from typing import TypeAlias, cast

Key: TypeAlias = tuple[str, tuple[str, ...]]
"""A name, and the values of its labels."""

Numbers: TypeAlias = MutableSequence[float]
"""A list, or a memoryview of float64, of which the stubs know those of integers alone."""

_CHUNK = 1 << 16
_BYTES = 8


class Figures:
    """Numbers, float64, that one process counts. Those of a name and labels are one sequence.

    Where a `folder` is given they lie in files there, which are mapped into memory: what was
    counted is there for `read_figures` at once, and stays when the process is killed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._slots: dict[Key, Numbers] = {}
        self._files = None if folder is None else _Files(folder)

    def slots(self, name: str, labels: tuple[str, ...] = (), count: int = 1) -> Numbers:
        """Return the numbers of a name and labels; zeros where there are none yet."""
        found = self._slots.get((name, labels))
        if found is None:
            if self._files is None:
                found = [0.0] * count
            else:
                found = self._files.allocate(name, labels, count)
            self._slots[name, labels] = found
        return found

    def forget(self, labels: tuple[str, ...]) -> None:
        """Drop the numbers whose labels begin with `labels`; those in files remain."""
        if self._files is None:
            for key in [key for key in self._slots if key[1][: len(labels)] == labels]:
                del self._slots[key]

    def items(self) -> list[tuple[Key, Numbers]]:
        """Return all numbers, by name and labels."""
        return list(self._slots.items())


class _Files:
    """The files of one process: chunks of numbers, and a list of what is where."""

    def __init__(self, folder: Path) -> None:
        # With the time, two processes of the same number have different files.
        self._base = folder / f"{os.getpid()}-{time.time_ns()}"
        self._chunks = 0
        self._used = _CHUNK
        self._chunk: memoryview[float] = memoryview(b"").cast("d")

    def allocate(self, name: str, labels: tuple[str, ...], count: int) -> Numbers:
        if self._used + count > _CHUNK:
            self._chunks, self._used = self._chunks + 1, 0
            with _chunk_path(self._base, self._chunks).open("w+b") as file:
                file.truncate(_CHUNK * _BYTES)
                self._chunk = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")
        start, self._used = self._used, self._used + count
        line = json.dumps([name, labels, self._chunks, start, count])
        with self._base.with_suffix(".names").open("a", encoding="utf-8") as names:
            names.write(line + "\n")
        return cast("Numbers", self._chunk[start : start + count])


def read_figures(folder: Path) -> Iterator[tuple[int, list[tuple[Key, Sequence[float]]]]]:
    """Yield the number of each process that counts in a folder, or has, and its figures."""
    for path in sorted(folder.glob("*.names")):
        base = path.with_suffix("")
        chunks: dict[int, Sequence[float]] = {}
        found: list[tuple[Key, Sequence[float]]] = []
        # A process that was killed may have left half a line.
        for line in path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines():
            name, labels, number, start, count = json.loads(line)
            if number not in chunks:
                chunks[number] = array("d", _chunk_path(base, number).read_bytes())
            found.append(((name, tuple(labels)), chunks[number][start : start + count]))
        yield int(base.name.partition("-")[0]), found


def _chunk_path(base: Path, number: int) -> Path:
    return base.with_suffix(f".{number}.values")
