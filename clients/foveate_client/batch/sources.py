"""Where pictures come from: folders, lists of paths, tar shards and Parquet tables.

Every source is read lazily, so that memory does not grow with the number of pictures.
"""

import os
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, cast

from foveate_client._exceptions import FoveateError
from foveate_client.batch import arrow

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
STDIN = "-"

_CLASS_EXTENSION = "cls"


class SourceError(FoveateError):
    """A source of pictures cannot be read."""


@dataclass(frozen=True, slots=True)
class Item:
    """A picture to classify.

    `name` tells it from every other one; bytes of a file's name that are no
    UTF-8 are escaped in it. `label` is what its folder or record says that it
    shows, as it stands there, and may be empty.
    """

    name: str
    image: Path | bytes
    label: str | None


class Source(Protocol):
    """A sequence of pictures that can be read again from its beginning."""

    def items(self) -> Iterator[Item]:
        """Yield the pictures. Raises SourceError."""
        ...

    def count(self) -> int | None:
        """Return how many there are, without reading them; None where it cannot be known."""
        ...


def open_source(
    text: str, *, ordered: bool, image_column: str | None = None, label_column: str | None = None
) -> Source:
    """Return the source that an argument of the command line names.

    A folder is read with everything below it; `.tar` is a webdataset shard,
    `.parquet` a table with the files' bytes in a column, `.txt` a list of paths,
    one a line, and `-` such a list on standard input. Anything else is taken
    for a picture's file. With `ordered`, a folder is read by name.
    """
    if text == STDIN:
        return Listing(None)
    path = Path(text)
    if path.is_dir():
        return Folder(path, ordered=ordered)
    name = path.name.lower()
    if not path.exists():
        raise SourceError(f"there is no {path}")
    if name.endswith(SHARD_SUFFIXES):
        return Shard(path)
    if path.suffix.lower() == ".parquet":
        return Table(path, image_column=image_column, label_column=label_column)
    if path.suffix.lower() in LIST_SUFFIXES:
        return Listing(path)
    return Files([path])


class Folder:
    """The pictures below a folder; each one's label is the name of the folder it lies in.

    With `ordered` the names of one folder at a time are held and sorted; without,
    they are taken as the file system lists them. Links to folders are not followed.
    """

    def __init__(self, path: Path, *, ordered: bool) -> None:
        self._path = path
        self._ordered = ordered

    def items(self) -> Iterator[Item]:
        """Yield the pictures."""
        return (_file(Path(path)) for path in _walk(self._path, ordered=self._ordered))

    def count(self) -> int:
        """Return how many there are."""
        return _length(_walk(self._path, ordered=False))


class Files:
    """Pictures by their paths."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def items(self) -> Iterator[Item]:
        """Yield the pictures."""
        return map(_file, self._paths)

    def count(self) -> int:
        """Return how many there are."""
        return len(self._paths)


class Listing:
    """A text file of paths, one a line, relative to the working directory; None is stdin."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def items(self) -> Iterator[Item]:
        """Yield the pictures."""
        for line in self._lines():
            yield _file(Path(line))

    def count(self) -> int | None:
        """Return how many there are; standard input can be read only once."""
        return None if self._path is None else _length(self._lines())

    def _lines(self) -> Iterator[str]:
        if self._path is None:
            yield from _stripped(sys.stdin.buffer)
            return
        try:
            with self._path.open("rb") as lines:
                yield from _stripped(lines)
        except OSError as error:
            raise SourceError(f"cannot read {self._path}: {error.strerror}") from error


class Shard:
    """A tar file in webdataset's layout: members of one key follow each other.

    A member's key is its path up to the first dot of its name. The member with
    a picture's extension is the picture; `.cls` holds its class; without one,
    the label is the member's folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def items(self) -> Iterator[Item]:
        """Yield the pictures."""
        with self._open() as tar:
            key, picture, image, label = "", "", b"", None
            for member in _members(tar):
                found, extension = _key(member.name)
                if found != key:
                    if picture:
                        yield self._item(picture, image, label)
                    key, picture, label = found, "", None
                if f".{extension}" in PICTURE_SUFFIXES and not picture:
                    picture, image = member.name, _content(tar, member)
                elif extension == _CLASS_EXTENSION:
                    label = _content(tar, member).decode("utf-8", "replace").strip()
            if picture:
                yield self._item(picture, image, label)

    def count(self) -> int:
        """Return how many there are, reading the headers alone."""
        with self._open() as tar:
            names = (_key(member.name) for member in _members(tar))
            pictures = (key for key, extension in names if f".{extension}" in PICTURE_SUFFIXES)
            return sum(1 for _ in groupby(pictures))

    def _item(self, picture: str, image: bytes, label: str | None) -> Item:
        folder = PurePosixPath(picture).parent.name
        name = _text(f"{self._path}#{picture}")
        return Item(name, image, _text(folder if label is None else label))

    @contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        try:
            with tarfile.open(self._path) as tar:
                yield tar
        except (tarfile.TarError, OSError, EOFError) as error:
            raise SourceError(f"{self._path}: the tar file cannot be read: {error}") from error


class Table:
    """A Parquet table with a picture's encoded file in each row.

    `image_column` is a column of bytes, or of structs with a field `bytes` as
    Hugging Face's datasets write them; None takes the only such column.
    `label_column` holds the classes; None takes the column `label` where there
    is one.
    """

    def __init__(self, path: Path, *, image_column: str | None, label_column: str | None) -> None:
        self._path = path
        self._image_column = image_column
        self._label_column = label_column

    def items(self) -> Iterator[Item]:
        """Yield the pictures; a row without one is an empty picture, which cannot be read."""
        rows = arrow.read_pictures(self._path, self._image_column, self._label_column)
        try:
            for number, (image, label) in enumerate(rows):
                yield Item(f"{self._path}#{number}", image, label)
        except (arrow.TableError, OSError) as error:
            raise SourceError(f"{self._path}: {error}") from error

    def count(self) -> int:
        """Return how many there are, from the file's footer."""
        try:
            return arrow.count_rows(self._path)
        except (arrow.TableError, OSError) as error:
            raise SourceError(f"{self._path}: {error}") from error


class Joined:
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def items(self) -> Iterator[Item]:
        """Yield the pictures."""
        for source in self._sources:
            yield from source.items()

    def count(self) -> int | None:
        """Return how many there are."""
        total = 0
        for source in self._sources:
            count = source.count()
            if count is None:
                return None
            total += count
        return total


def _file(path: Path) -> Item:
    return Item(_text(str(path)), path, _text(path.parent.name))


def _walk(folder: Path | str, *, ordered: bool) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            listing: Iterable[os.DirEntry[str]] = entries
            if ordered:
                listing = sorted(entries, key=attrgetter("name"))
            for entry in listing:
                if entry.is_dir(follow_symlinks=False):
                    yield from _walk(entry.path, ordered=ordered)
                elif os.path.splitext(entry.name)[1].lower() in PICTURE_SUFFIXES:  # noqa: PTH122
                    yield entry.path
    except OSError as error:
        raise SourceError(f"cannot read {error.filename}: {error.strerror}") from error


def _key(name: str) -> tuple[str, str]:
    """Return the key of a member, and its extension in lower case."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        if member.isfile():
            yield member
        # tarfile remembers every member, and has no public way to forget one.
        cast("Any", tar).members.clear()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    return b"" if content is None else content.read()


def _stripped(lines: Iterable[bytes]) -> Iterator[str]:
    return (os.fsdecode(path) for line in lines if (path := line.rstrip(b"\r\n")))


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _length(things: Iterable[object]) -> int:
    return sum(1 for _ in things)
